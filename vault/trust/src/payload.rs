//! What every payload that is signed has in common: how it is signed and read, and the bounds of
//! its versions and dates.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Seconds;
use crate::dsse::Envelope;
use crate::key::SigningKey;

/// Largest version: JSON readers everywhere represent it exactly, and an increment does not
/// overflow.
pub const MAX_VERSION: u64 = (1 << 53) - 1;

/// A payload that can be signed. Implemented by each kind of statement; whoever has an envelope
/// calls [`Statement::read`], and the judge decides whether to believe it.
pub trait Statement: Serialize + DeserializeOwned {
    /// The payload type in its envelope.
    const TYPE: &'static str;

    /// The inconsistency of the statement, if any.
    fn flaw(&self) -> Option<String>;

    /// Signs the statement.
    fn sign(&self, keys: &[&SigningKey]) -> Envelope {
        Envelope::sign(
            Self::TYPE,
            serde_json::to_vec(self).expect("plain data with text as keys is JSON"),
            keys,
        )
    }

    /// Reads an envelope's statement, unverified: only for finding out which keys to check with.
    ///
    /// # Errors
    /// The type differs, or the payload is not such a statement, or is inconsistent.
    fn read(envelope: &Envelope) -> Result<Self, String> {
        if envelope.payload_type() != Self::TYPE {
            let hint = if is_other_version(Self::TYPE, envelope.payload_type()) {
                OF_NEWER
            } else {
                ""
            };
            return Err(format!(
                "expected {}, got {:?}{hint}",
                Self::TYPE,
                crate::name::excerpt(envelope.payload_type())
            ));
        }
        let statement: Self =
            serde_json::from_slice(envelope.unverified_payload()).map_err(|error| {
                let error = error.to_string();
                let hint = if error.starts_with("unknown ") {
                    OF_NEWER
                } else {
                    ""
                };
                error + hint
            })?;
        statement.flaw().map_or(Ok(statement), Err)
    }
}

/// What a refusal adds when a newer program has signed the payload.
const OF_NEWER: &str = "; a newer casemate has signed this: upgrade the program that refuses it";

/// Whether two payload types are versions of the same statement.
fn is_other_version(one: &str, other: &str) -> bool {
    let stem = |payload_type: &str| {
        let (stem, version) = payload_type.strip_suffix("+json")?.rsplit_once(".v")?;
        version.parse::<u32>().ok().map(|_| stem.to_owned())
    };
    stem(one).is_some_and(|one| stem(other) == Some(one))
}

pub(crate) fn version_flaw(version: u64) -> Option<String> {
    (!(1..=MAX_VERSION).contains(&version))
        .then(|| format!("expected a version from 1 to 2^53 - 1, got {version}"))
}

pub(crate) fn span_flaw(issued: Seconds, expires: Seconds) -> Option<String> {
    (expires <= issued).then(|| format!("it expires ({expires}) before it is issued ({issued})"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statement::{Pool, Root};

    fn refusal(payload_type: &str, payload: &str) -> String {
        let envelope = Envelope::sign(payload_type, payload.as_bytes().to_vec(), &[]);
        Root::read(&envelope).unwrap_err()
    }

    #[test]
    fn what_a_newer_program_has_signed_is_refused_by_that_name() {
        let root = r#"{"version":1,"keys":[],"threshold":1,"issued":1,"expires":2,"later":true}"#;
        let later = refusal(Root::TYPE, root);
        assert!(
            later.contains("`later`") && later.ends_with(OF_NEWER),
            "{later}"
        );
        let version = refusal("application/vnd.casemate.root.v2+json", "{}");
        assert!(
            version.contains(Root::TYPE) && version.ends_with(OF_NEWER),
            "{version}"
        );
        for other in [
            Pool::TYPE,
            "application/vnd.casemate.root.vx+json",
            "root",
            "",
        ] {
            let text = refusal(other, "{}");
            assert!(!text.ends_with(OF_NEWER), "{text}");
        }
        assert!(!refusal(Root::TYPE, "{").ends_with(OF_NEWER));
    }
}
