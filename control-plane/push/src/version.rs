//! Which version of the protocol two ends speak: the highest that both do.
//!
//! A node offers its versions in the TLS handshake (ALPN, RFC 7301), newest first, and the control
//! plane takes the newest that it speaks itself: one handshake, inside of what TLS protects, in
//! whichever order the two were upgraded. An end that introduces a version goes on to speak the one
//! before, so that a fleet is upgraded node by node.
//!
//! Two ends without a common version still have [`APART`] in common, on which no version of the
//! protocol is spoken: the node sends one [`Offer`], and the control plane closes the connection
//! with [`apart`]. So the operator sees at the control plane which of its nodes are too old or too
//! new, and the node's log says the same. The format of an offer never changes.

use serde::{Deserialize, Serialize};

use crate::bounds::shorten;
use crate::codec::Violation;
use crate::message::MAX_TEXT_BYTES;

/// The application protocol of ends that have no version in common.
pub const APART: &[u8] = b"casemate-push/apart";
/// The versions that this program speaks. Who adds one: give changed messages types of their own
/// beside those of the version before, have [`crate::ControlEnd`] and [`crate::NodeEnd`] choose by
/// the version that was agreed on, and record the new version's conversations (`tests/recorded`).
pub const VERSIONS: Versions = Versions {
    oldest: 3,
    newest: 3,
};
/// Largest [`Offer`] in its frame, bytes.
pub const MAX_OFFER_BYTES: usize = 1024;
/// Longest version of software that is shown, bytes.
const MAX_SOFTWARE_BYTES: usize = 32;
/// Bytes in front of an offer: its length, as in front of every message.
const LENGTH_BYTES: usize = 4;

/// A range of versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Versions {
    /// The oldest.
    pub oldest: u16,
    /// The newest.
    pub newest: u16,
}

/// The result of a handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Agreed {
    /// This version is spoken.
    Version(u16),
    /// None is: see [`APART`].
    Apart,
}

/// The message of a node that has no version in common with the control plane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// Its oldest version.
    pub oldest: u16,
    /// Its newest.
    pub newest: u16,
    /// Version of its software.
    pub software: String,
}

/// The ALPN name of a version. Version 3 came while nothing had been released, and kept the name of
/// version 2.
fn alpn(version: u16) -> Vec<u8> {
    let named = if version == 3 { 2 } else { version };
    format!("casemate-push/{named}").into_bytes()
}

impl Versions {
    /// The names to offer, or to choose from, in the order of preference.
    pub fn alpns(self) -> Vec<Vec<u8>> {
        let versions = (self.oldest..=self.newest).rev().map(alpn);
        versions.chain([APART.to_vec()]).collect()
    }

    /// Interprets the protocol name that the handshake has agreed on; `None` if the name is none of
    /// [`Versions::alpns`].
    pub fn agreed(self, name: &[u8]) -> Option<Agreed> {
        if name == APART {
            return Some(Agreed::Apart);
        }
        let mut versions = self.oldest..=self.newest;
        let version = versions.find(|version| alpn(*version) == name)?;
        Some(Agreed::Version(version))
    }

    /// As people read it.
    fn text(self) -> String {
        match self {
            Self { oldest, newest } if oldest == newest => format!("version {newest}"),
            Self { oldest, newest } => format!("versions {oldest} to {newest}"),
        }
    }
}

impl Offer {
    /// A node's, as a frame.
    pub fn encode(versions: Versions, software: &str) -> Vec<u8> {
        let offer = Self {
            oldest: versions.oldest,
            newest: versions.newest,
            software: shorten(software.to_owned(), MAX_SOFTWARE_BYTES),
        };
        let json = serde_json::to_vec(&offer).expect("numbers and a text are JSON");
        let length = u32::try_from(json.len()).expect("an offer is short");
        [&length.to_be_bytes()[..], &json].concat()
    }

    /// From the bytes that came so far; `None` while some are missing. Members that later programs
    /// add are for later programs.
    ///
    /// # Errors
    /// It is no offer.
    pub fn decode(bytes: &[u8]) -> Result<Option<Self>, Violation> {
        let Some((length, rest)) = bytes.split_first_chunk::<LENGTH_BYTES>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes(*length) as usize;
        if length > MAX_OFFER_BYTES {
            return Err(Violation::FrameTooLarge(length));
        }
        let Some(json) = rest.get(..length) else {
            return Ok(None);
        };
        let mut offer: Self = serde_json::from_slice(json).map_err(|_| Violation::Format)?;
        if offer.oldest > offer.newest {
            return Err(Violation::Format);
        }
        offer.software.retain(|letter| letter.is_ascii_graphic());
        offer.software = shorten(offer.software, MAX_SOFTWARE_BYTES);
        Ok(Some(offer))
    }
}

/// Why a control plane that speaks `ours` does not serve a node, and what to do about it.
pub fn apart(offer: &Offer, ours: Versions, our_software: &str) -> String {
    let theirs = Versions {
        oldest: offer.oldest,
        newest: offer.newest,
    };
    let upgrade = if theirs.oldest > ours.newest {
        "upgrade the control plane"
    } else {
        "upgrade the node"
    };
    let text = format!(
        "no common push protocol: the node (casemate {}) speaks {}, the control plane (casemate \
         {our_software}) {}; {upgrade}",
        offer.software,
        theirs.text(),
        ours.text()
    );
    shorten(text, MAX_TEXT_BYTES)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn versions(oldest: u16, newest: u16) -> Versions {
        Versions { oldest, newest }
    }

    /// As TLS does: the first of the control plane's that the node offers.
    fn agree(node: Versions, control: Versions) -> Agreed {
        let offered = node.alpns();
        let chosen = control
            .alpns()
            .into_iter()
            .find(|name| offered.contains(name));
        let chosen = chosen.unwrap();
        assert_eq!(node.agreed(&chosen), control.agreed(&chosen));
        node.agreed(&chosen).unwrap()
    }

    proptest! {
        #[test]
        fn the_newest_common_version_is_spoken(
            node in (3_u16..20, 0_u16..5), control in (3_u16..20, 0_u16..5)
        ) {
            let node = versions(node.0, node.0 + node.1);
            let control = versions(control.0, control.0 + control.1);
            let newest = node.newest.min(control.newest);
            let common = newest >= node.oldest.max(control.oldest);
            let expected = if common { Agreed::Version(newest) } else { Agreed::Apart };
            prop_assert_eq!(agree(node, control), expected);
        }

        #[test]
        fn no_offer_does_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let framed = [&(bytes.len() as u32).to_be_bytes()[..], &bytes].concat();
            let _offer = Offer::decode(&framed);
        }
    }

    /// Names in use must not change, or nodes and control planes would no longer agree on a
    /// version.
    #[test]
    fn names_of_versions_do_not_change() {
        let names = |versions: Versions| -> Vec<String> {
            let names = versions.alpns().into_iter();
            names.map(|name| String::from_utf8(name).unwrap()).collect()
        };
        let expected = [
            "casemate-push/5",
            "casemate-push/4",
            "casemate-push/2",
            "casemate-push/apart",
        ];
        assert_eq!(names(versions(3, 5)), expected);
        assert_eq!(versions(3, 4).agreed(b"casemate-push/5"), None);
    }

    #[test]
    fn the_version_before_is_spoken_on() {
        assert!(
            VERSIONS.oldest <= VERSIONS.newest && VERSIONS.oldest <= 3.max(VERSIONS.newest - 1)
        );
    }

    #[test]
    fn an_offer_is_read_whatever_later_programs_add_and_shown_without_harm() {
        let frame = Offer::encode(versions(4, 6), "0.9.0");
        for cut in 0..frame.len() {
            assert_eq!(Offer::decode(&frame[..cut]), Ok(None));
        }
        let offer = Offer::decode(&frame).unwrap().unwrap();
        assert_eq!(
            (offer.oldest, offer.newest, offer.software.as_str()),
            (4, 6, "0.9.0")
        );
        let text = apart(&offer, versions(2, 3), "0.1.0");
        let expected = "no common push protocol: the node (casemate 0.9.0) speaks versions 4 to 6, \
             the control plane (casemate 0.1.0) versions 2 to 3; upgrade the control plane";
        assert_eq!(text, expected);
        assert!(apart(&offer, versions(7, 7), "1.0.0").ends_with("version 7; upgrade the node"));

        let read = |json: &str| {
            Offer::decode(&[&(json.len() as u32).to_be_bytes()[..], json.as_bytes()].concat())
        };
        let later = r#"{"oldest":4,"newest":6,"software":"\u001b[1m0.9\n","why":[]}"#;
        assert_eq!(read(later).unwrap().unwrap().software, "[1m0.9");
        for wrong in ["", "{}", r#"{"oldest":4,"newest":3,"software":""}"#] {
            assert_eq!(read(wrong), Err(Violation::Format), "{wrong}");
        }
        let huge = [u32::MAX.to_be_bytes().to_vec(), vec![0; 9]].concat();
        assert!(matches!(
            Offer::decode(&huge),
            Err(Violation::FrameTooLarge(_))
        ));
    }
}
