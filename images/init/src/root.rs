//! From the kernel's first files to the system: the initramfs has this program, and the system as a compressed file system, of
//! which only what is read takes memory.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::path::Path;

use rustix::io::Errno;
use rustix::ioctl::{IntegerSetter, Opcode, ioctl};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, mount_move, unmount};
use rustix::process::{chdir, chroot};

use crate::Failure;
use crate::kernel::load_modules;

/// In the initramfs.
const SYSTEM: &str = "/system.squashfs";
const DEVICE: &str = "/dev/loop0";
/// Where it is mounted until it is the root.
const SECOND_ROOT: &str = "/mnt";
/// What the boot stub has put beside the initramfs' own files (systemd-stub(7)).
const FROM_STUB: &str = "/.extra";

/// Gives a loop device its file (loop(4)).
const LOOP_SET_FD: Opcode = 0x4c00;

/// Makes the system the root, read only, on a mount of its own: whoever makes a smaller root for a program (`pivot_root(2)`) needs
/// one there, and the kernel's first root has none above it.
pub(crate) fn enter_system() -> Result<(), Failure> {
    let failed = |step: &str| Failure::step::<Errno>(format!("{step} for the root"));
    let dev_flags = MountFlags::NOSUID | MountFlags::NOEXEC;
    match mount("devtmpfs", "/dev", "devtmpfs", dev_flags, c"mode=0755") {
        Ok(()) | Err(Errno::BUSY) => {}
        Err(error) => return Err(failed("mount /dev")(error)),
    }
    // What cannot be loaded shows in the next step.
    let mut missing = load_modules().into_iter();
    attach().map_err(|error| match missing.next() {
        Some(problem) => Failure::Module(problem.what),
        None => Failure::step("give the loop device its file")(error),
    })?;
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
    mount(DEVICE, SECOND_ROOT, "squashfs", flags, None).map_err(failed("mount the system"))?;
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

/// The device reads from the file, and cannot write: it is open for reading alone.
#[expect(unsafe_code, reason = "no safe crate sets up a loop device")]
fn attach() -> std::io::Result<()> {
    let system = File::open(SYSTEM)?;
    let device = File::open(DEVICE)?;
    let number = usize::try_from(system.as_raw_fd()).map_err(std::io::Error::other)?;
    // SAFETY: the request takes a descriptor by value, and this one is open.
    let request = unsafe { IntegerSetter::<LOOP_SET_FD>::new_usize(number) };
    // SAFETY: it reads and writes no memory of ours.
    unsafe { ioctl(&device, request) }?;
    Ok(())
}
