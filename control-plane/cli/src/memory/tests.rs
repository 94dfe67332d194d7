//! Tests of a home's memory, with a control plane that shows older and different statements.

use casemate_trust::statement::{KeySet, Manifest};

use super::*;

const NOW: Seconds = 1000;

/// Accepts a statement of the root that is valid.
pub(crate) fn accept(judge: &mut Judge, envelope: &Envelope) {
    let decided = judge.decide(envelope, 1, &no_objects);
    let (committed, ()) = decided.unwrap().commit(|_| Ok::<_, ()>(())).unwrap();
    judge.apply(committed);
}

fn key(seed: u8) -> SigningKey {
    SigningKey::from_seed(&[seed; 32]).unwrap()
}

fn home() -> (tempfile::TempDir, Home) {
    let dir = tempfile::tempdir().unwrap();
    let home = Home::locate(Some(dir.path().join("home"))).unwrap();
    (dir, home)
}

fn world() -> (Known, Tenant) {
    let root = Root {
        version: 1,
        keys: vec![key(1).public()],
        threshold: 1,
        issued: 1,
        expires: 5000,
    };
    let root = root.sign(&[&key(1)]);
    let mut known = Known::new(FleetId(root.payload_digest().0));
    known.accept(&root, NOW).unwrap();
    let tenant = Tenant::first(
        known.fleet(),
        "shop".parse().unwrap(),
        KeySet::single(key(2).public()),
        Vec::new(),
        1,
        5000,
    );
    known.accept(&tenant.sign(&[&key(1)]), NOW).unwrap();
    (known, tenant)
}

fn manifest(tenant: &Tenant, version: u64, issued: Seconds) -> Envelope {
    Manifest {
        fleet: tenant.fleet,
        tenant: tenant.id,
        tenant_version: 1,
        version,
        functions: BTreeMap::new(),
        secrets: BTreeMap::new(),
        freshness: None,
        notes: [].into(),
        issued,
        expires: 5000,
    }
    .sign(&[&key(2)])
}

#[test]
fn memory_outlives_the_program_and_refuses_a_rollback() {
    let (_dir, home) = home();
    let (mut known, tenant) = world();
    let none = ObjectMap::new();
    let (one, two) = (manifest(&tenant, 1, 1), manifest(&tenant, 2, 1));
    known.save(&home).unwrap();
    for manifest in [&one, &two] {
        let change = known.decide_manifest(manifest, NOW, &none).unwrap();
        assert_eq!(known.keep(change, manifest).unwrap(), Accepted::New);
    }

    let known = Known::load(&home).unwrap().unwrap();
    assert_eq!(known.judge().root().unwrap().version, 1);
    assert_eq!(known.manifest(&tenant.id), Some(&two));
    let lower = known.decide_manifest(&one, NOW, &none).unwrap_err();
    assert_eq!(lower, Refusal::ManifestVersionLower(2, 1));
    let other = known.decide_manifest(&manifest(&tenant, 2, 2), NOW, &none);
    assert_eq!(other.unwrap_err(), Refusal::ManifestEqualOther);
    assert!(known.decide_manifest(&two, NOW, &none).unwrap().is_empty());
}

#[test]
fn accepted_statements_stay_after_expiry_and_new_expired_ones_are_refused() {
    let (_dir, home) = home();
    let (mut known, tenant) = world();
    known.save(&home).unwrap();
    let known = Known::load(&home).unwrap().unwrap();
    assert!(known.judge().tenant(&tenant.id).is_some());
    let late = known.decide_manifest(&manifest(&tenant, 1, 1), 9000, &ObjectMap::new());
    assert_eq!(late.unwrap_err().code(), "manifest_expired");
}

#[test]
fn a_root_of_another_fleet_is_refused_with_advice() {
    let (mut known, _) = world();
    let other = Root {
        version: 1,
        keys: vec![key(9).public()],
        threshold: 1,
        issued: 1,
        expires: 5000,
    };
    let error = known.accept(&other.sign(&[&key(9)]), NOW).unwrap_err();
    assert_eq!(error.code(), Code::Refused);
    assert!(error.to_text().contains("root_same_version_other_digest"));
}

#[test]
fn a_statement_that_cannot_be_stored_is_not_accepted() {
    let (dir, home) = home();
    let (mut known, tenant) = world();
    known.save(&home).unwrap();
    let next = Tenant {
        version: 2,
        ..tenant.clone()
    };
    let next = next.sign(&[&key(1)]);
    std::fs::remove_dir_all(home.path()).unwrap();
    std::fs::write(dir.path().join("home"), "no folder").unwrap();
    let error = known.accept(&next, NOW).unwrap_err();
    assert_eq!(error.code(), Code::CannotCreate);
    let held = known.judge().tenant(&tenant.id).unwrap();
    assert_eq!((held.tenant.version, known.judge().memory().floor), (1, 1));
    std::fs::remove_file(dir.path().join("home")).unwrap();
    assert_eq!(known.accept(&next, NOW).unwrap(), Accepted::New);
    let known = Known::load(&home).unwrap().unwrap();
    assert_eq!(known.judge().tenant(&tenant.id).unwrap().tenant.version, 2);
}

#[test]
fn every_root_outlives_the_program() {
    let (_dir, home) = home();
    let (mut known, _) = world();
    known.save(&home).unwrap();
    let next = Root {
        version: 2,
        keys: vec![key(3).public()],
        threshold: 1,
        issued: 2,
        expires: 5000,
    };
    known.accept(&next.sign(&[&key(1), &key(3)]), NOW).unwrap();
    let mut known = Known::load(&home).unwrap().unwrap();
    known.sign_anew(&key(3)).unwrap();
    let known = Known::load(&home).unwrap().unwrap();
    let roots = known
        .fleet_statements()
        .filter_map(|root| Root::read(root).ok());
    let versions: Vec<_> = roots.map(|root| root.version).collect();
    assert_eq!(
        versions,
        [1, 2],
        "a late client verifies them from the first"
    );
}

#[test]
fn a_damaged_memory_stops_every_command() {
    let (_dir, home) = home();
    write_private(&home.file(FILE), b"{\"memory\":{").unwrap();
    assert_eq!(Known::load(&home).unwrap_err().code(), Code::Io);
}

#[test]
fn the_cache_holds_whole_objects_only() {
    let (_dir, home) = home();
    let (kept, dropped) = (b"kept".to_vec(), b"dropped".to_vec());
    let digest = Digest::of(&kept);
    let both = ObjectMap::from([
        (digest, kept.clone()),
        (Digest::of(&dropped), dropped.clone()),
    ]);
    keep_objects(&home, &both).unwrap();
    keep_objects(&home, &ObjectMap::from([(digest, kept.clone())])).unwrap();
    assert_eq!(load_object(&home, &digest), Some(kept));
    assert_eq!(load_object(&home, &Digest::of(&dropped)), None);
    write_private(&home.file(OBJECTS).join(digest.to_string()), b"changed").unwrap();
    assert_eq!(load_object(&home, &digest), None);
}
