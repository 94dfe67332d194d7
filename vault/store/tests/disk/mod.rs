//! A small disk for a test, which the test can fill.

use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

/// The environment variable with the disk's mount point, in the process that has it.
const DISK: &str = "CASEMATE_TEST_DISK";
/// Name of the file that fills the disk.
const FILLER: &str = "something-else";

/// How to make a process with its own mount namespace and the right to mount; `None` if this
/// machine forbids it.
fn own_mounts() -> Option<&'static [&'static str]> {
    let ways: [&[&str]; 2] = [
        &["--user", "--map-root-user", "--mount"],
        // For root where user namespaces are forbidden.
        &["--mount"],
    ];
    ways.into_iter().find(|way| {
        let mounted = Command::new("unshare")
            .args(*way)
            .args(["mount", "-t", "tmpfs", "tmpfs", "/mnt"])
            .stderr(Stdio::null())
            .status();
        mounted.is_ok_and(|status| status.success())
    })
}

/// Runs the test of this name in a process with a disk of this size, which no other process sees;
/// temporary files are on it.
pub(crate) fn on_a_disk(test: &str, mib: u32, work: impl FnOnce(&Path)) {
    if let Some(disk) = std::env::var_os(DISK) {
        return work(Path::new(&disk));
    }
    let Some(own_mounts) = own_mounts() else {
        println!("skipped: a small disk needs a mount namespace, which this machine forbids");
        return;
    };
    let script = format!(
        "mount -t tmpfs -o size={mib}m tmpfs \"${DISK}\" && exec \"$0\" --exact {test} --nocapture"
    );
    let place = tempfile::tempdir().unwrap();
    let status = Command::new("unshare")
        .args(own_mounts)
        .args(["sh", "-c", &script])
        .arg(std::env::current_exe().unwrap())
        .env(DISK, place.path())
        .env("TMPDIR", place.path())
        .status();
    assert!(status.unwrap().success());
}

/// Fills the disk to its last byte.
pub(crate) fn fill(disk: &Path) {
    let mut file = File::options()
        .create(true)
        .append(true)
        .open(disk.join(FILLER))
        .unwrap();
    for bytes in [64 * 1024, 512, 1] {
        let chunk = vec![7; bytes];
        loop {
            match file.write(&chunk) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => break,
                Err(error) => panic!("{error}"),
            }
        }
    }
}

/// Removes the file that [`fill`] made.
pub(crate) fn empty(disk: &Path) {
    fs::remove_file(disk.join(FILLER)).unwrap();
}
