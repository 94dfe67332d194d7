//! Makes the system the root file system. The initramfs contains this program and the system, which
//! is a compressed file system: of its files, only those that are read take further memory.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, mount_move, unmount};
use rustix::process::{chdir, chroot};

use crate::Failure;
use crate::kernel::{load_module, load_modules};

/// The system's file in the initramfs.
const SYSTEM: &str = "/system.squashfs";
/// The module for a disk in memory, loaded with the size of the system.
const DISK_MODULE: &str = "brd.ko";
const DISK: &str = "/dev/ram0";
/// Mount point of the system until it becomes the root.
const SECOND_ROOT: &str = "/mnt";
/// The folder in which the boot stub puts its own files (systemd-stub(7)).
const FROM_STUB: &str = "/.extra";

/// Makes the system the root, read-only, on a mount of its own. A program that makes a smaller root
/// (`pivot_root(2)`) needs such a mount, and the kernel's first root has none above it.
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
        mount_bind(FROM_STUB, &place).map_err(failed("bind the boot stub's files"))?;
    }
    unmount("/dev", UnmountFlags::DETACH).map_err(failed("unmount /dev"))?;
    chdir(SECOND_ROOT).map_err(failed("change folder"))?;
    mount_move(".", "/").map_err(failed("move the mount"))?;
    chroot(".").map_err(failed("change root"))?;
    chdir("/").map_err(failed("change folder"))
}

/// Moves the system to the disk in memory, so that it is in memory only once. A loop device would
/// avoid the copy, but needs a system call that no safe crate offers.
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
