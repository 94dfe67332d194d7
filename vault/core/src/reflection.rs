//! When a credential stops because answers hold it. An upstream that returns what it was sent turns
//! a function's guess into a question, and a complete match into the answer *yes*. So complete
//! matches are counted for each function and secret, and after a few of them the credential stops
//! for that function.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use casemate_trust::id::TenantId;
use casemate_trust::name::{Identifier, Name};

/// Complete matches after which a credential stops.
pub const MAX_MATCHES: u32 = 3;
/// How long matches count, and how long a credential stays stopped, ms of the boot clock.
pub const WINDOW_MS: u64 = 60 * 60 * 1000;
/// Pairs of function and secret of a tenant with a match in the last hour; every pair beyond them
/// counts as stopped. A tenant has fewer functions with slots than that in any usual fleet.
const MAX_PAIRS: usize = 1024;

/// Which function, and which of its tenant's secrets.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Pair {
    function: Name,
    secret: Identifier,
}

#[derive(Debug, Clone, Copy)]
struct Count {
    matches: u32,
    /// Of the first match, or of the one with which the credential stopped.
    since_ms: u64,
}

impl Count {
    fn has_ended(self, now_ms: u64) -> bool {
        now_ms.saturating_sub(self.since_ms) >= WINDOW_MS
    }
}

/// A pair whose credential is stopped now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stopped {
    /// The tenant.
    pub tenant: TenantId,
    /// The function.
    pub function: Name,
    /// The secret.
    pub secret: Identifier,
    /// When it may be used again, ms of the boot clock.
    pub until_ms: u64,
}

/// What was counted in the last hour, by tenant. The vault owns one; it is lost when the vault ends.
#[derive(Debug, Default)]
pub struct Reflections {
    tenants: HashMap<TenantId, HashMap<Pair, Count>>,
}

impl Reflections {
    /// Counts complete matches. `true`: with these the credential has stopped.
    pub fn record(
        &mut self,
        tenant: TenantId,
        function: &Name,
        secret: &Identifier,
        matches: u32,
        now_ms: u64,
    ) -> bool {
        let counts = self.tenants.entry(tenant).or_default();
        counts.retain(|_, count| !count.has_ended(now_ms));
        let is_full = counts.len() >= MAX_PAIRS;
        let pair = Pair {
            function: function.clone(),
            secret: secret.clone(),
        };
        let count = match counts.entry(pair) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(_) if is_full => return false,
            Entry::Vacant(entry) => entry.insert(Count {
                matches: 0,
                since_ms: now_ms,
            }),
        };
        let before = count.matches;
        count.matches = before.saturating_add(matches);
        let stops = before < MAX_MATCHES && count.matches >= MAX_MATCHES;
        if stops {
            count.since_ms = now_ms;
        }
        stops
    }

    /// Until when a credential is stopped for a function, ms of the boot clock.
    pub fn stopped_until(
        &self,
        tenant: &TenantId,
        function: &Name,
        secret: &Identifier,
        now_ms: u64,
    ) -> Option<u64> {
        let counts = self.tenants.get(tenant)?;
        let pair = Pair {
            function: function.clone(),
            secret: secret.clone(),
        };
        let Some(count) = counts.get(&pair) else {
            let is_full = counts.len() >= MAX_PAIRS;
            return is_full.then_some(now_ms + WINDOW_MS);
        };
        let is_stopped = count.matches >= MAX_MATCHES && !count.has_ended(now_ms);
        is_stopped.then_some(count.since_ms + WINDOW_MS)
    }

    /// All pairs that are stopped now, in order.
    pub fn stopped(&self, now_ms: u64) -> Vec<Stopped> {
        let mut stopped: Vec<Stopped> = Vec::new();
        for (tenant, counts) in &self.tenants {
            for Pair { function, secret } in counts.keys() {
                if let Some(until_ms) = self.stopped_until(tenant, function, secret, now_ms) {
                    stopped.push(Stopped {
                        tenant: *tenant,
                        function: function.clone(),
                        secret: secret.clone(),
                        until_ms,
                    });
                }
            }
        }
        stopped.sort_by(|one, other| {
            let key = |of: &Stopped| (of.tenant.0, of.function.clone(), of.secret.clone());
            key(one).cmp(&key(other))
        });
        stopped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TENANT: TenantId = TenantId([1; 32]);

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn secret(text: &str) -> Identifier {
        text.parse().unwrap()
    }

    #[test]
    fn the_third_match_in_an_hour_stops_the_credential_for_that_function_for_an_hour() {
        let mut reflections = Reflections::default();
        let (web, key) = (name("web"), secret("KEY"));
        assert!(!reflections.record(TENANT, &web, &key, 2, 0));
        assert_eq!(reflections.stopped_until(&TENANT, &web, &key, 0), None);
        assert!(reflections.record(TENANT, &web, &key, 1, 1000));
        assert!(!reflections.record(TENANT, &web, &key, 1, 2000));
        let until = Some(1000 + WINDOW_MS);
        assert_eq!(reflections.stopped_until(&TENANT, &web, &key, 3000), until);
        assert_eq!(
            reflections.stopped_until(&TENANT, &web, &key, 1000 + WINDOW_MS),
            None
        );
        for (tenant, function, secret) in [
            (TENANT, name("other"), key.clone()),
            (TENANT, web.clone(), secret("OTHER")),
            (TenantId([2; 32]), web.clone(), key.clone()),
        ] {
            let until = reflections.stopped_until(&tenant, &function, &secret, 3000);
            assert_eq!(until, None, "{function} {secret}");
        }
        assert_eq!(reflections.stopped(3000).len(), 1);
        assert!(!reflections.record(TENANT, &web, &key, 1, 1000 + WINDOW_MS));
    }

    #[test]
    fn matches_of_an_earlier_hour_do_not_count() {
        let mut reflections = Reflections::default();
        let (web, key) = (name("web"), secret("KEY"));
        for hour in 0..5 {
            assert!(!reflections.record(TENANT, &web, &key, 2, hour * WINDOW_MS));
        }
    }

    #[test]
    fn a_pair_that_cannot_be_counted_is_stopped() {
        let mut reflections = Reflections::default();
        for number in 0..MAX_PAIRS {
            reflections.record(TENANT, &name("web"), &secret(&format!("K{number}")), 1, 0);
        }
        let (web, more) = (name("web"), secret("MORE"));
        reflections.record(TENANT, &web, &more, 1, 0);
        assert!(reflections.stopped_until(&TENANT, &web, &more, 0).is_some());
        let first = reflections.stopped_until(&TENANT, &web, &secret("K0"), 0);
        assert_eq!(first, None);
    }
}
