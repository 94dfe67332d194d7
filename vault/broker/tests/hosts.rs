//! One host that the root has given to two tenants, with the statements in every order.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod fleet;
mod upstream;

use std::collections::BTreeMap;

use casemate_trust::statement::{KeySet, Statement as _, Tenant};
use casemate_wire::control::parts::Arriving;
use casemate_wire::control::vault::{FromVault, ObjectKind, Plan, ToVault, Verdict};
use fleet::{FAR, Fleet, KEY, Vault, key};
use upstream::Upstream;

/// A statement of the control plane: a tenant's, or its manifest.
#[derive(Debug, Clone, Copy)]
enum Shown {
    Tenant(usize),
    Manifest(usize),
}
use Shown::{Manifest as M, Tenant as T};

/// Every order in which a manifest comes after its tenant.
const ORDERS: [[Shown; 4]; 6] = [
    [T(0), M(0), T(1), M(1)],
    [T(0), T(1), M(0), M(1)],
    [T(0), T(1), M(1), M(0)],
    [T(1), T(0), M(0), M(1)],
    [T(1), T(0), M(1), M(0)],
    [T(1), M(1), T(0), M(0)],
];

/// The first tenant was admitted before the second, and has a wildcard over the second's one host.
fn tenants(fleet: &Fleet) -> [(Tenant, u8); 2] {
    [
        ("first", 11, 5, "*.web.test"),
        ("second", 12, 9, "a.web.test"),
    ]
    .map(|(name, seed, admitted, host)| {
        let tenant = Tenant::first(
            fleet.fleet,
            name.parse().unwrap(),
            KeySet::single(key(seed).public()),
            vec![host.parse().unwrap()],
            admitted,
            FAR,
        );
        (tenant, seed)
    })
}

/// A member whose tenants all deploy a function for `a.web.test`.
async fn member(upstream: &Upstream) -> Fleet {
    let mut fleet = Fleet::start(upstream).await;
    fleet.edit_release = |release| release.hosts = vec!["a.web.test".parse().unwrap()];
    fleet.join().await;
    fleet
}

async fn show(fleet: &mut Fleet, shown: Shown) {
    let (Shown::Tenant(which) | Shown::Manifest(which)) = shown;
    let (tenant, seed) = tenants(fleet)[which].clone();
    let statement = tenant.sign(&[&key(1)]).to_bytes();
    fleet.become_tenant(tenant, seed);
    match shown {
        Shown::Tenant(_) => {
            let verdict = fleet.vault().submit(ObjectKind::Tenant, statement).await;
            assert_eq!(verdict, Verdict::Accepted);
        }
        Shown::Manifest(_) => drop(fleet.show_manifest(1).await),
    }
}

/// For each tenant with a function: its hosts, and those that belong to another tenant, with that
/// tenant's name.
type Hosts = BTreeMap<String, (Vec<String>, Vec<(String, String)>)>;

/// The newest plan of each tenant, among those since the last call.
async fn plans(vault: &mut Vault) -> BTreeMap<[u8; 32], Plan> {
    vault.send(ToVault::Describe, None).await;
    let mut plans = BTreeMap::new();
    let mut arriving = Arriving::new(1);
    loop {
        let part = vault.wait(|message| match message {
            FromVault::Plan(part) => Some(Some(*part)),
            FromVault::Description { .. } => Some(None),
            _ => None,
        });
        let Some(part) = part.await else {
            return plans;
        };
        if let Some(plan) = arriving.take(part).unwrap() {
            plans.insert(plan.tenant, plan);
        }
    }
}

/// The hosts in those plans.
async fn hosts(fleet: &mut Fleet) -> Hosts {
    let plans = plans(fleet.vault()).await.into_values();
    let of_function = plans.filter_map(|mut plan| {
        let function = plan.functions.pop()?;
        let lost = function.lost_hosts.into_iter();
        let lost = lost.map(|lost| (lost.host, lost.owner)).collect();
        Some((plan.name, (function.hosts, lost)))
    });
    of_function.collect()
}

/// The host belongs to the first tenant.
fn right() -> Hosts {
    let host = || "a.web.test".to_owned();
    [
        ("first".to_owned(), (vec![host()], vec![])),
        (
            "second".to_owned(),
            (vec![], vec![(host(), "first".to_owned())]),
        ),
    ]
    .into()
}

#[tokio::test(flavor = "multi_thread")]
async fn in_every_order_the_host_is_the_tenants_that_was_admitted_first() {
    let upstream = Upstream::start(KEY).await;
    for order in ORDERS {
        let mut fleet = member(&upstream).await;
        let mut seen = Hosts::new();
        for shown in order {
            show(&mut fleet, shown).await;
            seen.extend(hosts(&mut fleet).await);
        }
        assert_eq!(seen, right(), "{order:?}");
        fleet.kill_and_restart().await;
        assert_eq!(hosts(&mut fleet).await, right(), "{order:?}, started again");
    }
}

/// A taken-over control plane can withhold one of two statements of the root, which has an effect
/// only as long as it does.
#[tokio::test(flavor = "multi_thread")]
async fn a_withheld_owner_gets_its_host_back_as_soon_as_its_statement_comes() {
    let upstream = Upstream::start(KEY).await;
    let mut fleet = member(&upstream).await;
    for shown in [T(1), M(1)] {
        show(&mut fleet, shown).await;
    }
    let withheld = hosts(&mut fleet).await;
    assert_eq!(withheld["second"].0, ["a.web.test"]);
    show(&mut fleet, T(0)).await;
    let shown = hosts(&mut fleet).await;
    assert_eq!(shown["second"], right()["second"]);
    // The second tenant signs its keys again, with an early date.
    let [_, (second, seed)] = tenants(&fleet);
    let rotated = |admitted| Tenant {
        version: 2,
        issued: 0,
        current: KeySet::single(key(66).public()),
        admitted,
        ..second.clone()
    };
    for (admitted, code) in [(Some(0), "tenant_scope_widened"), (Some(9), "accepted")] {
        let bytes = rotated(admitted).sign(&[&key(seed)]).to_bytes();
        let verdict = fleet.vault().submit(ObjectKind::Tenant, bytes).await;
        let said = match verdict {
            Verdict::Refused { code, .. } => code,
            Verdict::Accepted => "accepted".to_owned(),
            Verdict::Missing { .. } => "missing".to_owned(),
        };
        assert_eq!(said, code, "{admitted:?}");
    }
    let after = hosts(&mut fleet).await;
    assert_eq!(after["second"], right()["second"]);
    // Only the operator can give it the host, by taking it from the first.
    let [(first, _), _] = tenants(&fleet);
    let without = Tenant {
        version: 2,
        hosts: vec![],
        ..first
    };
    let bytes = without.sign(&[&key(1)]).to_bytes();
    let verdict = fleet.vault().submit(ObjectKind::Tenant, bytes).await;
    assert_eq!(verdict, Verdict::Accepted);
    assert_eq!(hosts(&mut fleet).await["second"].0, ["a.web.test"]);
}
