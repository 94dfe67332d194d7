//! The owner of a host does not depend on the order of the tenants' statements.

use proptest::prelude::*;

use super::*;
use crate::host::{HostName, HostPattern};

/// Few patterns, so that tenants overlap.
const PATTERNS: [&str; 6] = [
    "a.test",
    "x.b.test",
    "y.b.test",
    "*.b.test",
    "*.c.b.test",
    "localhost",
];
const HOSTS: [&str; 7] = [
    "a.test",
    "b.test",
    "x.b.test",
    "y.b.test",
    "z.b.test",
    "x.c.b.test",
    "localhost",
];
const TENANTS: usize = 4;

fn hosts(patterns: &[usize]) -> Vec<HostPattern> {
    let chosen = patterns.iter().map(|at| PATTERNS[*at].parse().unwrap());
    chosen.collect()
}

/// The first statement of the tenant with this number, its keys are `10 + number`.
fn tenant(world: &World, number: usize, admitted: Option<u64>, patterns: &[usize]) -> Tenant {
    let tenant = Tenant::first(
        world.fleet,
        name(&format!("t{number}")),
        KeySet::single(key(10 + number as u8).public()),
        hosts(patterns),
        1,
        LATER,
    );
    Tenant { admitted, ..tenant }
}

/// The next statement, by the root.
fn narrowed(tenant: &Tenant, patterns: &[usize]) -> Tenant {
    Tenant {
        version: tenant.version + 1,
        hosts: hosts(patterns),
        ..tenant.clone()
    }
}

fn owners(judge: &Judge) -> Vec<Option<TenantId>> {
    let owner = |host: &&str| judge.host_owner(&host.parse().unwrap());
    let ids = HOSTS
        .iter()
        .map(|host| owner(host).map(|state| state.tenant.id));
    ids.collect()
}

/// The rule, implemented as documented.
fn expected(tenants: &[Tenant]) -> Vec<Option<TenantId>> {
    let owner = |host: &HostName| {
        let covers = |tenant: &&Tenant| tenant.hosts.iter().any(|pattern| pattern.covers(host));
        let first = tenants.iter().filter(covers);
        first
            .min_by_key(|tenant| (tenant.admitted, tenant.id))
            .map(|tenant| tenant.id)
    };
    let hosts = HOSTS.iter().map(|host| owner(&host.parse().unwrap()));
    hosts.collect()
}

/// Accepts a statement of the root; returns the tenants that the judge names as affected.
fn affected(judge: &mut Judge, tenant: &Tenant) -> Vec<TenantId> {
    let signed = tenant.sign(&[&key(1)]);
    let change = judge.decide(&signed, NOW, &no_objects).unwrap();
    let affected = change.affected().to_vec();
    assert_eq!(judge.accept(&signed, NOW), Ok(Accepted::New));
    affected
}

fn pattern_sets() -> impl Strategy<Value = Vec<Vec<usize>>> {
    let set = proptest::sample::subsequence((0..PATTERNS.len()).collect::<Vec<_>>(), 0..4);
    proptest::collection::vec(set, TENANTS)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Each tenant has two statements, in a fixed order of its own; everything else is shuffled. A
    /// tenant whose hosts change is among those that the judge names as affected, which decides
    /// whose plans are made again.
    #[test]
    fn owners_depend_on_the_statements_and_not_on_their_order(
        first in pattern_sets(),
        second in pattern_sets(),
        admitted in proptest::collection::vec(proptest::option::of(0_u64..3), TENANTS),
        order in Just((0..2 * TENANTS).map(|n| n % TENANTS).collect::<Vec<_>>()).prop_shuffle(),
    ) {
        let mut world = World::new();
        let mut newest = BTreeMap::<usize, Tenant>::new();
        for number in order {
            let next = match newest.get(&number) {
                None => tenant(&world, number, admitted[number], &first[number]),
                Some(before) => narrowed(before, &second[number]),
            };
            let judge = &mut world.judge;
            let owned = owners(judge);
            newest.insert(number, next.clone());
            let affected = affected(judge, &next);
            let held: Vec<Tenant> = newest.values().cloned().collect();
            prop_assert_eq!(owners(judge), expected(&held));
            prop_assert_eq!(affected[0], next.id);
            for (was, is) in owned.iter().zip(owners(judge)).filter(|(was, is)| **was != *is) {
                for id in was.iter().chain(&is) {
                    prop_assert!(affected.contains(id));
                }
            }
        }
        // A restarted vault replays the newest statements in the order of their ids.
        let memory = world.judge.memory().clone();
        let mut again = Judge::remembering(memory, Some(name("main")));
        again.accept(&root(1, &[1]).sign(&[&key(1)]), NOW).unwrap();
        let by_id: BTreeMap<_, _> = newest.values().map(|tenant| (tenant.id, tenant)).collect();
        for tenant in by_id.values() {
            again.accept(&tenant.sign(&[&key(1)]), NOW).unwrap();
        }
        prop_assert_eq!(owners(&again), owners(&world.judge));
    }
}

#[test]
fn a_tenant_that_signs_itself_earlier_does_not_come_first() {
    let mut world = World::new();
    let (first, second) = (
        tenant(&world, 1, Some(5), &[3]),
        tenant(&world, 2, Some(9), &[1]),
    );
    let judge = &mut world.judge;
    for tenant in [&second, &first] {
        judge.accept(&tenant.sign(&[&key(1)]), NOW).unwrap();
    }
    let rotated = |admitted, issued| Tenant {
        version: 2,
        current: KeySet::single(key(66).public()),
        admitted,
        issued,
        ..second.clone()
    };
    let own = |tenant: Tenant| tenant.sign(&[&key(12)]);
    for admitted in [None, Some(0), Some(4)] {
        let refused = judge.accept(&own(rotated(admitted, 0)), NOW);
        assert_eq!(refused, Err(Refusal::TenantScopeWidened), "{admitted:?}");
        // A mistake of the root does not change it either.
        let by_root = rotated(admitted, 0).sign(&[&key(1)]);
        let refused = judge.accept(&by_root, NOW).unwrap_err();
        assert_eq!(refused.code(), "tenant_admitted_other", "{admitted:?}");
    }
    // The tenant chooses the date of its rotation, which has no effect.
    let accepted = judge.accept(&own(rotated(Some(9), 0)), NOW);
    assert_eq!(accepted, Ok(Accepted::New));
    let owner = judge.host_owner(&"x.b.test".parse().unwrap()).unwrap();
    assert_eq!(owner.tenant.id, first.id);
    let contested = judge.contested_hosts(&second.id);
    let contested: Vec<_> = contested
        .iter()
        .map(|(pattern, owner)| (pattern.as_str(), owner.tenant.id))
        .collect();
    assert_eq!(contested, [("x.b.test", first.id)]);
    assert!(judge.contested_hosts(&first.id).is_empty());
}

/// A statement of an earlier program keeps its digest, and ranks before those with a time of
/// admission.
#[test]
fn a_statement_without_a_time_of_admission_is_read_and_written_as_it_was() {
    let world = World::new();
    let old = tenant(&world, 1, None, &[0]);
    let written = serde_json::to_string(&old).unwrap();
    assert!(!written.contains("admitted"), "{written}");
    assert_eq!(serde_json::from_str::<Tenant>(&written).unwrap(), old);
}

/// Many tenants have names below one domain, as on a platform: the next tenant is compared with
/// those that have its name, and with a wildcard above them all once each.
#[test]
fn a_change_affects_those_behind_it_that_overlap_and_nobody_else() {
    let mut world = World::new();
    let fleet = world.fleet;
    let with_host = |number: u64, host: String| {
        let name = name(&format!("t{number}"));
        let keys = KeySet::single(key(10).public());
        let hosts = vec![host.parse().unwrap()];
        let tenant = Tenant::first(fleet, name, keys, hosts, 1, LATER);
        Tenant {
            admitted: Some(number),
            ..tenant
        }
    };
    let judge = &mut world.judge;
    let tenants: Vec<_> = (10..210)
        .filter(|number| *number != 100)
        .map(|number| with_host(number, format!("t{number}.apps.test")))
        .collect();
    let twin = with_host(300, "t20.apps.test".into());
    let wildcard = with_host(100, "*.apps.test".into());
    for tenant in &tenants {
        assert_eq!(affected(judge, tenant), [tenant.id]);
    }
    for (tenant, behind) in [(&twin, 0), (&wildcard, 110)] {
        assert_eq!(affected(judge, tenant).len(), 1 + behind);
    }
    // A statement that keeps the hosts affects only its own tenant's plan.
    let renewed = Tenant {
        version: 2,
        ..wildcard.clone()
    };
    assert_eq!(affected(judge, &renewed), [renewed.id]);
}
