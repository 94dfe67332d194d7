//! From the kernel's first files to the system: the initramfs has this program, and the system as a
//! compressed file system, of which only what is read takes memory.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, mount_move, unmount};
use rustix::process::{chdir, chroot};

use crate::Failure;
use crate::kernel::{load_module, load_modules};

/// In the initramfs.
const SYSTEM: &str = "/system.squashfs";
/// A disk in memory, made as large as that.
const DISK_MODULE: &str = "brd.ko";
const DISK: &str = "/dev/ram0";
/// Where it is mounted until it is the root.
const SECOND_ROOT: &str = "/mnt";
/// What the boot stub has put beside the initramfs' own files (systemd-stub(7)).
const FROM_STUB: &str = "/.extra";

/// Makes the system the root, read only, on a mount of its own: whoever makes a smaller root for a
/// program (`pivot_root(2)`) needs one there, and the kernel's first root has none above it.
pub(crate) fn enter_system() -> Result<(), Failure> {
    let failed = |step: &str| Failure::step::<Errno>(format!("{step} for the root"));
    let dev_flags = MountFlags::NOSUID | MountFlags::NOEXEC;
    match mount("devtmpfs", "/dev", "devtmpfs", dev_flags, c"mode=0755") {
        Ok(()) | Err(Errno::BUSY) => {}
        Err(error) => return Err(failed("mount /dev")(error)),
    }
    let mut missing = load_modules().into_iter();
    if let Some(problem) = missing.next() {
        return Err(Failure::Module(problem.what));
    }
    fill_disk().map_err(Failure::step("put the system on a disk in memory"))?;
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
    mount(DISK, SECOND_ROOT, "squashfs", flags, None).map_err(failed("mount the system"))?;
    if Path::new(FROM_STUB).exists() {
        let place = format!("{SECOND_ROOT}{FROM_STUB}");
        mount_bind(FROM_STUB, &place).map_err(failed("keep what the boot stub has measured"))?;
    }
    unmount("/dev", UnmountFlags::DETACH).map_err(failed("take away /dev"))?;
    chdir(SECOND_ROOT).map_err(failed("change folder"))?;
    mount_move(".", "/").map_err(failed("move the mount"))?;
    chroot(".").map_err(failed("change root"))?;
    chdir("/").map_err(failed("change folder"))
}

/// Moves the system there: it is in memory once. A loop device would spare the copy, and needs a
/// call that no safe crate has.
fn fill_disk() -> io::Result<()> {
    let mut system = File::open(SYSTEM)?;
    let kib = system.metadata()?.len().div_ceil(1024);
    load_module(
        DISK_MODULE,
        &CString::new(format!("rd_nr=1 rd_size={kib}"))?,
    )?;
    let mut disk = File::options().write(true).open(DISK)?;
    io::copy(&mut system, &mut disk)?;
    disk.sync_all()?;
    fs::remove_file(SYSTEM)
}
