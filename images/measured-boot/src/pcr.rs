//! Computes what the boot stub measures.

use std::fmt;

use ring::digest::{Context, SHA256, digest};
use serde::{Deserialize, Serialize};

/// The value of a PCR of the SHA-256 bank; as text, in hexadecimal.
#[derive(Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PcrValue(#[serde(with = "hex::serde")] pub [u8; 32]);

impl PcrValue {
    /// The value before anything was measured.
    pub const ZERO: Self = Self([0; 32]);

    /// The value after one more event (TPM 2.0 part 1, 17.2).
    #[must_use]
    pub fn extended(self, event: &[u8]) -> Self {
        let event = digest(&SHA256, event);
        Self(sha256(&[&self.0, event.as_ref()]))
    }
}

impl fmt::Display for PcrValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for PcrValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Sections that systemd's stub measures into PCR 11, in its order (systemd-stub(7), version 252).
/// `.pcrsig` is not among them, because it depends on the others' measurements.
pub const SECTIONS: &[&str] = &[
    ".linux", ".osrel", ".cmdline", ".initrd", ".splash", ".dtb", ".pcrpkey",
];

/// PCR 11 after the stub has measured these sections: for each section first its name with a zero
/// byte, then its bytes.
pub fn measured(sections: &[(&str, &[u8])]) -> PcrValue {
    let mut value = PcrValue::ZERO;
    for name in SECTIONS {
        let found = sections.iter().find(|(section, _)| section == name);
        if let Some((_, bytes)) = found {
            value = value
                .extended(format!("{name}\0").as_bytes())
                .extended(bytes);
        }
    }
    value
}

/// The possible values of PCR 12 when the command line was not changed. Either nothing passes a
/// command line (the firmware starts the stub), or the boot loader passes the image's own command
/// line and measures it, or the stub also accepts this one (without Secure Boot) and measures it
/// again. Both measure UTF-16 with a zero at the end.
pub fn command_lines(command_line: &str) -> [PcrValue; 3] {
    let units = command_line.encode_utf16().chain([0]);
    let event: Vec<u8> = units.flat_map(u16::to_le_bytes).collect();
    let once = PcrValue::ZERO.extended(&event);
    [PcrValue::ZERO, once, once.extended(&event)]
}

/// SHA-256 of the parts, concatenated.
pub fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let mut context = Context::new(&SHA256);
    parts.iter().for_each(|part| context.update(part));
    let mut value = [0; 32];
    value.copy_from_slice(context.finish().as_ref());
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_the_stubs_and_names_count() {
        let (osrel, linux) = ((".osrel", &b"a"[..]), (".linux", &b"b"[..]));
        let value = measured(&[osrel, linux]);
        assert_eq!(value, measured(&[linux, osrel]));
        let by_hand = PcrValue::ZERO
            .extended(b".linux\0")
            .extended(b"b")
            .extended(b".osrel\0")
            .extended(b"a");
        assert_eq!(value, by_hand);
        assert_eq!(
            value,
            measured(&[osrel, linux, (".pcrsig", b"x"), (".uname", b"y")])
        );
        assert_ne!(value, measured(&[osrel, (".linux", b"c")]));
    }
}
