//! Whether the firmware starts only signed programs: its variable `SecureBoot` (UEFI 2.10, 3.3).

use std::fs;
use std::path::Path;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

const VARIABLES: &str = "/sys/firmware/efi/efivars";
/// The variable's name with the GUID of the specification's own variables.
const SECURE_BOOT: &str = "SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";

/// A machine whose firmware has no such variable counts as one without Secure Boot.
pub(crate) fn is_on() -> bool {
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    if mount("efivarfs", VARIABLES, "efivarfs", flags, None).is_err() {
        return false;
    }
    let value = fs::read(Path::new(VARIABLES).join(SECURE_BOOT));
    // The file system stays mounted, read-only.
    let _unmounted = unmount(VARIABLES, UnmountFlags::empty());
    value.is_ok_and(|value| is_set(&value))
}

/// The value follows four bytes of attributes (the kernel's
/// `Documentation/filesystems/efivarfs.rst`).
fn is_set(variable: &[u8]) -> bool {
    matches!(variable, [_, _, _, _, 1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_one_is_on() {
        assert!(is_set(&[6, 0, 0, 0, 1]));
        for other in [&[6, 0, 0, 0, 0][..], &[1], &[], &[6, 0, 0, 0, 1, 0]] {
            assert!(!is_set(other));
        }
    }
}
