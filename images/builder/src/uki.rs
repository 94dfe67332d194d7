//! The unified kernel image (UAPI.5): one file that firmware starts, all of whose parts are covered
//! by its signature.

use casemate_measured_boot::{Approval, ApprovalKey, Approvals, command_lines, measured};
use casemate_trust::image::ImageVersion;

use crate::Error;
use crate::pe::{Section, add_sections};

/// The parts of a unified kernel image.
pub(crate) struct Parts<'a> {
    pub(crate) os_release: &'a str,
    pub(crate) command_line: &'a str,
    pub(crate) kernel_release: &'a str,
    pub(crate) initramfs: &'a [u8],
    pub(crate) kernel: &'a [u8],
}

/// The marker that names a stub and its version. Only this version's measurements are known:
/// another version may measure differently, and an approved image would then never open its storage
/// key.
const STUB_NAME: &[u8] = b"#### LoaderInfo: systemd-stub ";
const MEASURED_STUB: &[u8] = b"252";

/// Refuses a stub whose measurements are unknown.
fn check_stub(stub: &[u8]) -> Result<(), Error> {
    let mut windows = stub.windows(STUB_NAME.len());
    let name = windows.position(|window| window == STUB_NAME);
    let version = name.map_or(&[][..], |at| &stub[at + STUB_NAME.len()..]);
    let digits = version.iter().take_while(|byte| byte.is_ascii_digit());
    let number = &version[..digits.count()];
    if number == MEASURED_STUB {
        return Ok(());
    }
    Err(Error::Stub(format!(
        "expected systemd-stub {}, whose measurements are known, got {:?}; without a key this check is skipped",
        String::from_utf8_lossy(MEASURED_STUB),
        String::from_utf8_lossy(number)
    )))
}

/// Appends the parts to the stub. The kernel comes last, because it may need more memory than its
/// size in the file. A key approves what the stub will measure.
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
        check_stub(stub)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_stub_whose_measurements_are_known_is_approved() {
        let stub = |version: &str| {
            format!("MZ\0#### LoaderInfo: systemd-stub {version} ####\0").into_bytes()
        };
        check_stub(&stub("252.39-1~deb12u2")).unwrap();
        for other in ["253.1", "2520", "257~rc1", ""] {
            let error = check_stub(&stub(other)).unwrap_err();
            assert!(error.to_string().contains("systemd-stub 252"), "{error}");
        }
        assert!(check_stub(b"MZ").is_err());
    }
}
