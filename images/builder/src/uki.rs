//! The unified kernel image (UAPI.5): one file that firmware starts, with everything inside of its signature.

use crate::Error;
use crate::pe::{Section, add_sections};

/// What a unified kernel image is made of.
pub(crate) struct Parts<'a> {
    pub(crate) os_release: &'a str,
    pub(crate) command_line: &'a str,
    pub(crate) kernel_release: &'a str,
    pub(crate) initramfs: &'a [u8],
    pub(crate) kernel: &'a [u8],
}

/// Puts the parts behind the stub. The kernel is the last: it may need more memory than it has bytes.
pub(crate) fn unify(stub: &[u8], parts: &Parts<'_>) -> Result<Vec<u8>, Error> {
    let section = |name, bytes| Section { name, bytes };
    add_sections(
        stub,
        &[
            section(".osrel", parts.os_release.as_bytes()),
            section(".cmdline", parts.command_line.as_bytes()),
            section(".uname", parts.kernel_release.as_bytes()),
            section(".initrd", parts.initramfs),
            section(".linux", parts.kernel),
        ],
    )
}
