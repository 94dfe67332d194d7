//! The unified kernel image (UAPI.5): one file that firmware starts, with everything inside of its signature.

use casemate_measured_boot::{Approval, ApprovalKey, Approvals, command_lines, measured};
use casemate_trust::image::ImageVersion;

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

/// Puts the parts behind the stub. The kernel is the last: it may need more memory than it has bytes. With a key, it approves
/// of what the stub will measure.
pub(crate) fn unify(
    stub: &[u8],
    parts: &Parts<'_>,
    key: Option<(&ApprovalKey, ImageVersion)>,
) -> Result<Vec<u8>, Error> {
    let pem = key.map_or("", |(key, _)| key.public().to_pem());
    let mut sections = vec![
        (".osrel", parts.os_release.as_bytes()),
        (".cmdline", parts.command_line.as_bytes()),
        (".uname", parts.kernel_release.as_bytes()),
        (".initrd", parts.initramfs),
        (".linux", parts.kernel),
    ];
    let approval;
    if let Some((key, version)) = key {
        sections.insert(0, (".pcrpkey", pem.as_bytes()));
        let pcr11 = measured(&sections);
        let approve = |pcr12| {
            key.approve(Approval {
                version,
                pcr11,
                pcr12,
            })
        };
        let approved: Result<_, _> = command_lines(parts.command_line)
            .map(approve)
            .into_iter()
            .collect();
        approval = Approvals(approved?).to_text();
        sections.insert(0, (".pcrsig", approval.as_bytes()));
    }
    let section = |(name, bytes)| Section { name, bytes };
    let sections: Vec<_> = sections.into_iter().map(section).collect();
    add_sections(stub, &sections)
}
