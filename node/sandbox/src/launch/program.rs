//! The programs that launch starts.

use super::packet::Malformed;

/// A program that launch starts for the supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Program {
    /// `casemate-vault`; one at a time.
    Vault,
    /// `casemate-gateway`; one at a time.
    Gateway,
    /// `casemate-worker`.
    Worker,
}

impl Program {
    pub(super) fn to_byte(self) -> u8 {
        match self {
            Self::Vault => 1,
            Self::Gateway => 2,
            Self::Worker => 3,
        }
    }

    pub(super) fn from_byte(byte: u8) -> Result<Self, Malformed> {
        [Self::Vault, Self::Gateway, Self::Worker]
            .into_iter()
            .find(|program| program.to_byte() == byte)
            .ok_or(Malformed)
    }
}
