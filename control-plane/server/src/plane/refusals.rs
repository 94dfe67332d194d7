//! Refused requests in the audit log: each leaves a record, but only some of many refusals of one
//! client. The records are kept for ever and synced, so that a client that is refused a thousand
//! times a second would otherwise fill the disk.

use std::collections::{BTreeSet, HashMap};
use std::fmt;

use casemate_push::LogEntry;
use casemate_trust::Seconds;
use casemate_trust::name::Name;
use parking_lot::Mutex;

use super::logs::speaks_of_its_own;
use super::{Actor, Plane, now};

/// Records that one client's refusals may leave at once: more than a person's mistakes need.
const BURST: u64 = 20;
/// Seconds until a client's refusals may leave another: 1,440 a day, which is less than a megabyte.
const REFILL_SECS: Seconds = 60;
/// Clients whose refusals are counted; beyond that number, those without recent refusals are
/// forgotten.
const MAX_ACTORS: usize = 4096;
/// Longest code in a record, characters: this program's are short, a node's may be anything.
const MAX_CODE_CHARS: usize = 64;

/// Records that each client may still leave. All strangers count as one.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    accounts: Mutex<HashMap<String, Account>>,
}

#[derive(Debug)]
struct Account {
    left: u64,
    /// Time of the last refill.
    since: Seconds,
    unrecorded: u64,
}

impl Account {
    fn refill(&mut self, now: Seconds) {
        let rounds = now.saturating_sub(self.since) / REFILL_SECS;
        self.left = self.left.saturating_add(rounds).min(BURST);
        // A clock that was set back does not delay the refill.
        self.since = (self.since + rounds * REFILL_SECS).min(now);
    }
}

impl Refusals {
    /// Whether a refusal is to leave a record; if so, how many earlier ones left none.
    fn take(&self, actor: &Actor, now: Seconds) -> Option<u64> {
        let accounts = &mut *self.accounts.lock();
        let who = match actor {
            Actor::Token { id, .. } => format!("token {id}"),
            Actor::Stranger(_) => "strangers".to_owned(),
            other => other.to_string(),
        };
        if accounts.len() >= MAX_ACTORS && !accounts.contains_key(&who) {
            accounts.retain(|_, account| {
                account.refill(now);
                account.left < BURST
            });
            if accounts.len() >= MAX_ACTORS {
                return None;
            }
        }
        let account = accounts.entry(who).or_insert(Account {
            left: BURST,
            since: now,
            unrecorded: 0,
        });
        account.refill(now);
        if account.left == 0 {
            account.unrecorded += 1;
            return None;
        }
        account.left -= 1;
        Some(std::mem::take(&mut account.unrecorded))
    }
}

/// The class of the log records with which a vault reports that answers held a credential.
const REFLECTED: &str = "credential_reflected";

impl Plane {
    /// Leaves a record for each function of a node's log records whose credential has stopped
    /// because answers held it, of those functions that run in its pool.
    pub(crate) async fn audit_reflections(&self, node: &Name, pool: &Name, entries: &[LogEntry]) {
        let functions: BTreeSet<_> = {
            let held = self.held();
            let reflected = entries.iter().filter(|entry| {
                entry.failure.as_deref() == Some(REFLECTED) && speaks_of_its_own(&held, pool, entry)
            });
            reflected
                .map(|entry| (entry.tenant.to_string(), &entry.function))
                .collect()
        };
        let actor = Actor::Node(node.clone());
        for (tenant, function) in functions {
            let subject = format!("function {function} of tenant {tenant}");
            self.refused(&actor, "credential.use", subject, REFLECTED)
                .await;
        }
    }

    /// Leaves a record of a refused request. A failed write of the record is logged; the refusal
    /// stands without it.
    pub(crate) async fn refused(
        &self,
        actor: &Actor,
        action: &str,
        subject: impl fmt::Display,
        code: &str,
    ) {
        let Some(unrecorded) = self.refusals.take(actor, now()) else {
            return;
        };
        let code: String = code.chars().take(MAX_CODE_CHARS).collect();
        let more = match unrecorded {
            0 => String::new(),
            more => format!(" (after {more} without a record)"),
        };
        // The part that may be cut off comes last.
        let subject = format!("{code}{more}: {subject}");
        let recorded = async {
            self.reserve().await?;
            let writing = self.begin().await;
            writing
                .commit(actor, action, &subject, vec![], vec![])
                .await
        };
        if let Err(fault) = recorded.await {
            tracing::warn!(%actor, action, subject, code = fault.code(), "a refusal leaves no record");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stranger(number: u8) -> Actor {
        Actor::Stranger(Some([10, 0, 0, number].into()))
    }

    #[test]
    fn strangers_share_one_allowance_and_each_node_has_its_own() {
        let refusals = Refusals::default();
        let taken = |actor: &Actor, now| refusals.take(actor, now).is_some();
        let recorded = (0..100).filter(|number| taken(&stranger(*number), 1000));
        assert_eq!(recorded.count() as u64, BURST);
        assert_eq!(refusals.take(&stranger(1), 1000 + REFILL_SECS), Some(80));
        assert_eq!(refusals.take(&stranger(1), 1000 + REFILL_SECS), None);
        assert_eq!(refusals.take(&stranger(1), 1000 + 3 * REFILL_SECS), Some(1));
        let node = Actor::Node("edge-1".parse().unwrap());
        assert_eq!(refusals.take(&node, 1000), Some(0));
        let later = 1000 + 1000 * REFILL_SECS;
        let recorded = (0..100).filter(|number| taken(&stranger(*number), later));
        assert_eq!(recorded.count() as u64, BURST);
        // After the clock was set back, the count continues from there.
        assert!(!taken(&stranger(1), 10));
        assert!(taken(&stranger(1), 10 + REFILL_SECS));
    }

    #[test]
    fn many_actors_are_forgotten_when_they_are_quiet() {
        let refusals = Refusals::default();
        let node = |number: usize| Actor::Node(format!("edge-{number}").parse().unwrap());
        for number in 0..MAX_ACTORS {
            assert!(refusals.take(&node(number), 1000).is_some());
        }
        assert!(refusals.take(&node(MAX_ACTORS), 1000).is_none());
        assert!(refusals.take(&node(0), 1000).is_some());
        let later = 1000 + REFILL_SECS;
        assert!(refusals.take(&node(MAX_ACTORS), later).is_some());
        assert!(refusals.accounts.lock().len() < MAX_ACTORS);
    }
}
