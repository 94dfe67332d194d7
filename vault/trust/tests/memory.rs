//! Memory that a judge needs for each tenant.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
#![allow(clippy::print_stdout, reason = "prints what was measured")]

use casemate_trust::id::{FleetId, TenantId};
use casemate_trust::judge::{Judge, MAX_TENANTS, Memory, no_objects};
use casemate_trust::key::SigningKey;
use casemate_trust::statement::{KeySet, Manifest, Statement as _, Tenant};

/// Memory for the most tenants that are remembered, bytes.
const MOST_BYTES: usize = 200_000_000;
/// One part in so many of them is measured.
const PART: usize = 10;
const FAR: u64 = 4_000_000_000;

/// Resident memory of this process, bytes.
fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("Anonymous:"));
    let kib: usize = line
        .unwrap()
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap();
    kib * 1024
}

#[test]
fn as_many_tenants_as_are_remembered_fit_into_200_mb() {
    let fleet = FleetId([1; 32]);
    let key = SigningKey::from_seed(&[1; 32]).unwrap().public();
    let tenant = |number: usize| {
        let hosts = vec![format!("t{number}.apps.test").parse().unwrap()];
        let name = format!("t{number}").parse().unwrap();
        Tenant::first(fleet, name, KeySet::single(key), hosts, 1, FAR)
    };
    let manifest = |tenant: TenantId| Manifest {
        fleet,
        tenant,
        tenant_version: 1,
        version: 1,
        functions: [].into(),
        secrets: [].into(),
        freshness: None,
        notes: [].into(),
        issued: 1,
        expires: FAR,
    };
    // Stored rows, whose signatures were checked before they were written.
    let numbers = || 0..MAX_TENANTS / PART;
    let tenants = numbers().map(|number| ((), tenant(number).sign(&[])));
    let manifests = numbers().map(|number| ((), manifest(tenant(number).id).sign(&[])));
    let before = resident();
    let rows = tenants.chain(manifests);
    let (judge, refused) = Judge::replay(Memory::new(fleet), None, rows, &no_objects);
    assert!(refused.is_empty());
    assert_eq!(judge.tenants().count(), MAX_TENANTS / PART);
    let each = (resident() - before) / (MAX_TENANTS / PART);
    println!(
        "{each} bytes for each of {} tenants",
        judge.tenants().count()
    );
    assert!(
        each * MAX_TENANTS <= MOST_BYTES,
        "{each} bytes for each tenant"
    );
}
