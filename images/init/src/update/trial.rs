//! The trial of an image: it is good or bad by the node's health over time.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// The health of the node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Health {
    /// The vault is open and this node is a member.
    pub(crate) vault: bool,
    /// The control plane is connected.
    pub(crate) connected: bool,
    /// A function serves.
    pub(crate) serving: bool,
}

impl Health {
    /// Each part is healthy if it is in either.
    pub(super) fn or(self, other: Self) -> Self {
        Self {
            vault: self.vault || other.vault,
            connected: self.connected || other.connected,
            serving: self.serving || other.serving,
        }
    }

    /// The reason, if this state is worse than the one before.
    fn worse_than(self, before: Self) -> Option<&'static str> {
        let lost = |now: bool, before: bool| before && !now;
        if lost(self.vault, before.vault) {
            Some("the vault is not open")
        } else if lost(self.connected, before.connected) {
            Some("the control plane is not reached")
        } else if lost(self.serving, before.serving) {
            Some("no function serves")
        } else {
            None
        }
    }
}

/// Whether the image that runs is good: a decision over time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Trial {
    pub(super) before: Health,
    pub(super) until: Instant,
    pub(super) well_since: Option<Instant>,
    pub(super) well_for: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Wait,
    Good,
    /// The image is bad, for this reason.
    Bad(&'static str),
}

impl Trial {
    pub(super) fn look(&mut self, health: Health, now: Instant) -> Verdict {
        let worse = health.worse_than(self.before);
        match worse {
            None => {
                let since = *self.well_since.get_or_insert(now);
                if now.duration_since(since) >= self.well_for {
                    return Verdict::Good;
                }
            }
            Some(_) => self.well_since = None,
        }
        match worse {
            Some(why) if now >= self.until => Verdict::Bad(why),
            _ => Verdict::Wait,
        }
    }
}
