//! Reads files that the firmware passes on.

use std::fs;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::console::{Page, Problem};

const FW_CFG: &str = "/sys/firmware/qemu_fw_cfg/by_name/opt/casemate";
const DMI: &str = "/sys/firmware/dmi/entries";
/// OEM strings (SMBIOS 7.12).
const OEM_STRINGS: u8 = 11;
/// Prefixes of the names, as systemd defines them.
const TEXT: &str = "io.systemd.credential:casemate.";
const BINARY: &str = "io.systemd.credential.binary:casemate.";

/// Files from QEMU: a folder for each file, with the contents in `raw`.
pub(super) fn fw_cfg() -> Vec<(String, Vec<u8>)> {
    let Ok(entries) = fs::read_dir(FW_CFG) else {
        return Vec::new();
    };
    let file = |entry: fs::DirEntry| {
        let bytes = fs::read(entry.path().join("raw")).ok()?;
        Some((entry.file_name().to_string_lossy().into_owned(), bytes))
    };
    entries.filter_map(|entry| file(entry.ok()?)).collect()
}

/// Files from SMBIOS.
pub(super) fn smbios(page: &mut Page) -> Vec<(String, Vec<u8>)> {
    let Ok(entries) = fs::read_dir(DMI) else {
        return Vec::new();
    };
    let mut files = Vec::new();
    for entry in entries.filter_map(Result::ok) {
        let is_oem = entry
            .file_name()
            .to_string_lossy()
            .starts_with(&format!("{OEM_STRINGS}-"));
        let raw = fs::read(Path::new(&entry.path()).join("raw"));
        if let (true, Ok(raw)) = (is_oem, raw) {
            for (name, value) in credentials(&raw) {
                match value {
                    Ok(bytes) => files.push((name, bytes)),
                    Err(error) => page.problem(Problem::new(
                        format!("the SMBIOS credential casemate.{name} is not base64: {error}"),
                        "give it as io.systemd.credential.binary:casemate.NAME=BASE64",
                    )),
                }
            }
        }
    }
    files
}

/// Our entries among the strings of a structure: a header whose length is its second byte, then
/// strings that each end with a zero.
fn credentials(raw: &[u8]) -> Vec<(String, Result<Vec<u8>, base64::DecodeError>)> {
    let header = raw.get(1).map_or(0, |length| usize::from(*length));
    let strings = raw.get(header..).unwrap_or_default();
    let texts = strings
        .split(|byte| *byte == 0)
        .take_while(|text| !text.is_empty());
    let ours = texts.filter_map(|text| {
        let text = std::str::from_utf8(text).ok()?;
        let decode = |value: &str| STANDARD.decode(value.trim());
        let (name, value) = match (text.strip_prefix(TEXT), text.strip_prefix(BINARY)) {
            (Some(rest), _) => {
                let (name, value) = rest.split_once('=')?;
                (name, Ok(value.as_bytes().to_vec()))
            }
            (_, Some(rest)) => {
                let (name, value) = rest.split_once('=')?;
                (name, decode(value))
            }
            _ => return None,
        };
        Some((name.to_owned(), value))
    });
    ours.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_found_among_other_strings() {
        let mut raw = vec![OEM_STRINGS, 5, 0, 1, 4];
        for text in [
            "vendor=x",
            "io.systemd.credential:casemate.join-token=casemate-join-abc=",
            "io.systemd.credential.binary:casemate.node.toml=W2dhdGV3YXldCg==",
            "io.systemd.credential.binary:casemate.vault.toml=???",
            "io.systemd.credential:other=1",
        ] {
            raw.extend_from_slice(text.as_bytes());
            raw.push(0);
        }
        raw.push(0);
        raw.extend_from_slice(b"io.systemd.credential:casemate.late=1\0");
        let found = credentials(&raw);
        assert_eq!(found.len(), 3);
        assert_eq!(
            found[0],
            ("join-token".into(), Ok(b"casemate-join-abc=".to_vec()))
        );
        assert_eq!(found[1], ("node.toml".into(), Ok(b"[gateway]\n".to_vec())));
        assert!(found[2].1.is_err());
    }

    proptest::proptest! {
        #[test]
        fn no_structure_does_harm(raw in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
            let _ = credentials(&raw);
        }
    }
}
