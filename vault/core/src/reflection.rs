//! Decides when a credential stops because answers contain it. An upstream that echoes turns a
//! function's guess into a question, and a complete match into the answer *yes*. So complete
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
/// Most pairs of function and secret of a tenant with a match in the last hour; further pairs count
/// as stopped. Usual tenants have fewer functions with slots.
const MAX_PAIRS: usize = 1024;

/// A function, and one of its tenant's secrets.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Pair {
    function: Name,
    secret: Identifier,
}

#[derive(Debug, Clone, Copy)]
struct Count {
    matches: u32,
    /// The time of the first match, or of the one that stopped the credential.
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
    /// When the credential may be used again, ms of the boot clock.
    pub until_ms: u64,
}

/// The count of a function and secret, to be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counted {
    /// The function.
    pub function: Name,
    /// The secret.
    pub secret: Identifier,
    /// Complete matches.
    pub matches: u32,
    /// The time of the first match, or of the one that stopped the credential, ms of the boot
    /// clock.
    pub since_ms: u64,
}

/// The result of counting a match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recorded {
    /// The match is counted.
    Counts,
    /// The match stops the credential.
    Stops,
    /// The credential was stopped already; nothing has changed.
    IsStopped,
}

/// The counts of a tenant.
#[derive(Debug, Default)]
struct Counts {
    of_pairs: HashMap<Pair, Count>,
    /// When every pair was stopped because the tenant's record could not be read.
    unread_since_ms: Option<u64>,
}

impl Counts {
    fn prune(&mut self, now_ms: u64) {
        self.of_pairs.retain(|_, count| !count.has_ended(now_ms));
    }

    /// The same, until the hour has passed.
    fn unread_since_ms(&self, now_ms: u64) -> Option<u64> {
        self.unread_since_ms
            .filter(|since_ms| now_ms.saturating_sub(*since_ms) < WINDOW_MS)
    }
}

/// The matches of the last hour, by tenant. The vault owns one, and stores every change.
#[derive(Debug, Default)]
pub struct Reflections {
    tenants: HashMap<TenantId, Counts>,
}

impl Reflections {
    /// Counts complete matches.
    pub fn record(
        &mut self,
        tenant: TenantId,
        function: &Name,
        secret: &Identifier,
        matches: u32,
        now_ms: u64,
    ) -> Recorded {
        let is_stopped = self.stopped_until(&tenant, function, secret, now_ms);
        if is_stopped.is_some() {
            return Recorded::IsStopped;
        }
        let counts = self.tenants.entry(tenant).or_default();
        counts.prune(now_ms);
        let is_full = counts.of_pairs.len() >= MAX_PAIRS;
        let pair = Pair {
            function: function.clone(),
            secret: secret.clone(),
        };
        let count = match counts.of_pairs.entry(pair) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(_) if is_full => return Recorded::IsStopped,
            Entry::Vacant(entry) => entry.insert(Count {
                matches: 0,
                since_ms: now_ms,
            }),
        };
        count.matches = count.matches.saturating_add(matches);
        if count.matches < MAX_MATCHES {
            return Recorded::Counts;
        }
        count.since_ms = now_ms;
        Recorded::Stops
    }

    /// Stops a credential whose count could not be stored and would be forgotten.
    pub fn stop(&mut self, tenant: TenantId, function: &Name, secret: &Identifier, now_ms: u64) {
        self.record(tenant, function, secret, MAX_MATCHES, now_ms);
    }

    /// The counts of a tenant that still matter, in order, to be stored.
    pub fn counted(&self, tenant: &TenantId, now_ms: u64) -> Vec<Counted> {
        let counts = self.tenants.get(tenant);
        let pairs = counts.into_iter().flat_map(|counts| &counts.of_pairs);
        let counting = pairs.filter(|(_, count)| !count.has_ended(now_ms));
        let mut counted: Vec<_> = counting
            .map(|(pair, count)| Counted {
                function: pair.function.clone(),
                secret: pair.secret.clone(),
                matches: count.matches,
                since_ms: count.since_ms,
            })
            .collect();
        counted.sort_by(|one, other| {
            (&one.function, &one.secret).cmp(&(&other.function, &other.secret))
        });
        counted
    }

    /// When every credential of a tenant was stopped, ms of the boot clock: see
    /// [`Self::stop_tenant`]. To be stored with the counts.
    pub fn tenant_stopped_since(&self, tenant: &TenantId, now_ms: u64) -> Option<u64> {
        self.tenants.get(tenant)?.unread_since_ms(now_ms)
    }

    /// Stops every credential of a tenant for an hour, because the tenant's record cannot be read.
    pub fn stop_tenant(&mut self, tenant: TenantId, since_ms: u64) {
        let counts = self.tenants.entry(tenant).or_default();
        counts.unread_since_ms = counts.unread_since_ms.max(Some(since_ms));
    }

    /// Restores the counts of a tenant that an earlier run of the vault has stored.
    pub fn restore(&mut self, tenant: TenantId, counted: Vec<Counted>, now_ms: u64) {
        let counts = self.tenants.entry(tenant).or_default();
        for counted in counted {
            let pair = Pair {
                function: counted.function,
                secret: counted.secret,
            };
            let count = Count {
                matches: counted.matches,
                since_ms: counted.since_ms,
            };
            counts.of_pairs.insert(pair, count);
        }
        counts.prune(now_ms);
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
        if let Some(since_ms) = counts.unread_since_ms(now_ms) {
            return Some(since_ms + WINDOW_MS);
        }
        let pair = Pair {
            function: function.clone(),
            secret: secret.clone(),
        };
        let Some(count) = counts.of_pairs.get(&pair) else {
            let counting = counts.of_pairs.values();
            let is_full = counting.filter(|count| !count.has_ended(now_ms)).count() >= MAX_PAIRS;
            return is_full.then_some(now_ms + WINDOW_MS);
        };
        let is_stopped = count.matches >= MAX_MATCHES && !count.has_ended(now_ms);
        is_stopped.then_some(count.since_ms + WINDOW_MS)
    }

    /// All pairs that are stopped now: first one of each tenant, then a second one of each, and so
    /// on, so that a tenant with many leaves room for the others in a shortened list.
    pub fn stopped(&self, now_ms: u64) -> Vec<Stopped> {
        let mut stopped = Vec::new();
        for tenant in self.tenants.keys() {
            let counted = self.counted(tenant, now_ms).into_iter();
            let of_tenant = counted.filter(|counted| counted.matches >= MAX_MATCHES);
            stopped.extend(of_tenant.enumerate().map(|(rank, counted)| {
                let stopped = Stopped {
                    tenant: *tenant,
                    function: counted.function,
                    secret: counted.secret,
                    until_ms: counted.since_ms + WINDOW_MS,
                };
                (rank, stopped)
            }));
        }
        stopped.sort_by_key(|(rank, stopped)| (*rank, stopped.tenant.0));
        stopped.into_iter().map(|(_, stopped)| stopped).collect()
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
        let mut record = |matches, now_ms| reflections.record(TENANT, &web, &key, matches, now_ms);
        assert_eq!(record(2, 0), Recorded::Counts);
        assert_eq!(record(1, 1000), Recorded::Stops);
        assert_eq!(record(1, 2000), Recorded::IsStopped);
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
        let recorded = reflections.record(TENANT, &web, &key, 1, 1000 + WINDOW_MS);
        assert_eq!(recorded, Recorded::Counts);
    }

    #[test]
    fn matches_of_an_earlier_hour_do_not_count() {
        let mut reflections = Reflections::default();
        let (web, key) = (name("web"), secret("KEY"));
        for hour in 0..5 {
            let recorded = reflections.record(TENANT, &web, &key, 2, hour * WINDOW_MS);
            assert_eq!(recorded, Recorded::Counts);
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

    #[test]
    fn stored_counts_still_count() {
        let (web, key) = (name("web"), secret("KEY"));
        let mut before = Reflections::default();
        before.record(TENANT, &web, &key, 2, 1000);
        before.record(TENANT, &name("old"), &key, 2, 0);
        let counted = before.counted(&TENANT, WINDOW_MS);
        assert_eq!(counted.len(), 1, "counts that have ended are not stored");
        let mut after = Reflections::default();
        after.restore(TENANT, counted, WINDOW_MS);
        assert_eq!(after.stopped_until(&TENANT, &web, &key, WINDOW_MS), None);
        let recorded = after.record(TENANT, &web, &key, 1, WINDOW_MS);
        assert_eq!(recorded, Recorded::Stops);
    }

    #[test]
    fn a_count_that_cannot_be_read_or_written_stops_the_credential() {
        let (web, key) = (name("web"), secret("KEY"));
        let until = |reflections: &Reflections, now_ms| {
            reflections.stopped_until(&TENANT, &web, &key, now_ms)
        };
        let mut reflections = Reflections::default();
        reflections.stop_tenant(TENANT, 1000);
        reflections.stop_tenant(TENANT, 500);
        assert_eq!(until(&reflections, 2000), Some(1000 + WINDOW_MS));
        let since = reflections.tenant_stopped_since(&TENANT, 2000);
        assert_eq!(since, Some(1000));
        assert_eq!(until(&reflections, 1000 + WINDOW_MS), None);
        let since = reflections.tenant_stopped_since(&TENANT, 1000 + WINDOW_MS);
        assert_eq!(since, None);
        let mut reflections = Reflections::default();
        reflections.record(TENANT, &web, &key, 1, 0);
        reflections.stop(TENANT, &web, &key, 5);
        assert_eq!(until(&reflections, 5), Some(5 + WINDOW_MS));
    }

    #[test]
    fn each_tenant_is_listed_before_the_second_of_any() {
        let mut reflections = Reflections::default();
        let other = TenantId([2; 32]);
        for number in 0..5 {
            let key = secret(&format!("K{number}"));
            reflections.record(TENANT, &name("web"), &key, 3, 0);
        }
        reflections.record(other, &name("web"), &secret("K"), 3, 0);
        let stopped = reflections.stopped(0);
        let tenants: Vec<_> = stopped.iter().map(|stopped| stopped.tenant).collect();
        assert_eq!(tenants, [TENANT, other, TENANT, TENANT, TENANT, TENANT]);
    }
}
