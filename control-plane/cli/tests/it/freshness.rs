//! `casemate freshness`: the demand outlives every other change, and only the newest manifest is
//! confirmed as the newest.

use std::path::Path;

use casemate_trust::freshness::Freshness;
use casemate_trust::key::PublicKey;
use casemate_trust::statement::{Manifest, Statement as _};
use serde_json::Value;

use super::fake::Fake;
use super::world::{Person, World, world};

fn manifests(fake: &Fake) -> Vec<Manifest> {
    let given = fake.given();
    let signed = given.manifests.values().flatten();
    signed
        .map(|signed| Manifest::read(signed).unwrap())
        .collect()
}

fn statements(fake: &Fake) -> Vec<(Freshness, bool, PublicKey)> {
    let given = fake.given();
    let tenant = given.tenants.values().next().unwrap().first().unwrap();
    let tenant = casemate_trust::statement::Tenant::read(tenant).unwrap();
    let own = tenant.current.keys[0];
    let said = given.freshness.values().flatten();
    said.map(|statement| {
        let read = Freshness::read(statement).unwrap();
        (read, statement.verify(&[own], 1), own)
    })
    .collect()
}

/// Removes the uploaded statements, so that the next renewal does not find one that is a moment
/// old.
fn forget_statements(fake: &Fake) {
    fake.given().freshness.clear();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demand_is_carried_by_every_other_change() {
    let World {
        fake, tenant, _dir, ..
    } = world().await;
    fake.given().nodes = vec!["edge-1"];
    let project = tenant.deploys("web", "web.shop.test", "");
    let none = tenant.run(&["freshness", "renew"]);
    assert_eq!(none.code, 66, "{}", none.err);
    assert_eq!(tenant.json(&["freshness", "show"]), Value::Null);
    let key = tenant.json(&["freshness", "key", "--plain-keys"]);
    let public = key["public_key"].as_str().unwrap();
    let required = tenant.json(&["freshness", "require", "--max-age", "1h", "--key", public]);
    assert_eq!(required["freshness"]["max_age_secs"], 3600);
    assert_eq!(required["freshness"]["key"], public);
    let demanded = manifests(&fake).last().unwrap().freshness.clone();
    assert!(demanded.is_some());

    tenant.source("web", 2);
    tenant.json(&["deploy", "--project", &project]);
    tenant.json(&["rollback", "web"]);
    let sealed = ["secret", "put", "KEY", "--host", "api.test"];
    tenant.json_with(&sealed, "a-value-of-some-length\n");
    tenant.json(&["secret", "rm", "KEY", "--yes"]);
    tenant.json(&["prune", "web", "--keep", "0"]);
    tenant.json(&["renew"]);
    tenant.json(&["remove", "web", "--yes"]);
    let after: Vec<_> = manifests(&fake).into_iter().skip(1).collect();
    assert_eq!(after.len(), 8);
    for manifest in after {
        assert_eq!(
            manifest.freshness, demanded,
            "manifest {}",
            manifest.version
        );
    }
    // If no key is given, the key stays; it is removed with its own option.
    tenant.json(&["freshness", "require", "--max-age", "2h"]);
    let kept = manifests(&fake).last().unwrap().freshness.clone().unwrap();
    assert_eq!((kept.max_age_secs, kept.key.is_some()), (7200, true));
    tenant.json(&["freshness", "require", "--max-age", "2h", "--no-key"]);
    let gone = manifests(&fake).last().unwrap().freshness.clone().unwrap();
    assert_eq!(gone.key, None);
    tenant.json(&["freshness", "off"]);
    assert_eq!(manifests(&fake).last().unwrap().freshness, None);
    let again = tenant.run(&["freshness", "off"]);
    assert_eq!(again.code, 66, "{}", again.err);
    for wrong in ["59s", "31d", "soon"] {
        let ran = tenant.run(&["freshness", "require", "--max-age", wrong]);
        assert_eq!(ran.code, 64, "{wrong}: {}", ran.err);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewal_is_signed_by_the_named_key_and_shown_by_the_status() {
    let World {
        fake, tenant, _dir, ..
    } = world().await;
    let status = tenant.run(&["status"]).out;
    assert!(status.contains("nothing is deployed yet"), "{status}");
    let required = tenant.json(&["freshness", "require", "--max-age", "1h", "--wait", "0"]);
    assert_eq!(required["freshness"]["key"], Value::Null);
    let status = tenant.run(&["status"]).out;
    assert!(status.contains("freshness: 1h, fresh until 20"), "{status}");
    // The tenant's own key signs.
    let renewed = tenant.json(&["freshness", "renew"]);
    assert_eq!(
        (&renewed["manifest"], &renewed["renewed"]),
        (&1.into(), &true.into())
    );
    let again = tenant.json(&["freshness", "renew"]);
    assert_eq!(again["renewed"], false, "a moment ago");
    let said = statements(&fake);
    assert_eq!(said.len(), 1);
    let (statement, by_tenant, _) = &said[0];
    let newest = manifests(&fake).pop().unwrap();
    assert_eq!(statement.manifest, newest.sign(&[]).payload_digest());
    assert!(by_tenant);
    assert_eq!(renewed["fresh_until"], statement.issued + 3600);
    // A freshness key that the manifest does not name is not used if the tenant's key is present.
    tenant.json(&["freshness", "key", "--plain-keys"]);
    let public = tenant.json(&["freshness", "key"])["public_key"].clone();
    forget_statements(&fake);
    let named = [
        "freshness",
        "require",
        "--max-age",
        "1h",
        "--wait",
        "0",
        "--key",
    ];
    tenant.json(&[&named[..], &[public.as_str().unwrap()]].concat());
    tenant.json(&["freshness", "renew"]);
    let (statement, by_tenant, _) = statements(&fake).pop().unwrap();
    assert_eq!(
        (statement.version, by_tenant),
        (2, false),
        "by the named key alone"
    );
    let shown = tenant.json(&["status"]);
    assert_eq!(shown["freshness"]["key"], public);
    assert_eq!(shown["freshness"]["fresh_until"], statement.issued + 3600);
    // A statement that a node would refuse is ignored, with a warning.
    let later = Freshness {
        issued: statement.issued + 60,
        ..statement
    };
    let id = later.tenant;
    let forged = vec![later.sign(&[&fake.key])];
    fake.given().freshness.insert(id, forged);
    tenant.run(&["status"]).ended(0, "signature_threshold");
}

fn copy(from: &Person, to: &Person, files: &[&str]) {
    std::fs::create_dir_all(&to.home).unwrap();
    for file in files {
        std::fs::copy(from.home.join(file), to.home.join(file)).unwrap();
    }
}

fn write(path: &Path, text: &str) -> String {
    std::fs::write(path, text).unwrap();
    path.display().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_manifest_is_called_the_newest_on_the_control_planes_claim_alone() {
    let World {
        fake,
        tenant,
        login,
        _dir,
        ..
    } = world().await;
    let cron = Person::new(_dir.path(), "cron");
    let key = cron.json(&["freshness", "key", "--plain-keys"]);
    let public = key["public_key"].as_str().unwrap();
    cron.json_with(&["login", &login], "casemate_1");
    let named = [
        "freshness",
        "require",
        "--max-age",
        "1h",
        "--wait",
        "0",
        "--key",
    ];
    tenant.json(&[&named[..], &[public]].concat());
    tenant.json(&["freshness", "require", "--max-age", "2h", "--wait", "0"]);
    // Manifest 2 withdraws a function; the control plane hides it from both homes.
    fake.given().show_manifest = Some(0);
    cron.run(&["freshness", "renew"])
        .ended(64, "--newest-from FILE");
    // A home with another tenant's key does not count as one that deploys for this tenant.
    let elsewhere = Person::new(_dir.path(), "elsewhere");
    let job = [
        "connection.json",
        "memory.json",
        "freshness.key",
        "freshness.pub",
    ];
    copy(&cron, &elsewhere, &job);
    elsewhere.json(&["tenant", "key", "--plain-keys"]);
    elsewhere
        .run(&["freshness", "renew", "--tenant", "shop"])
        .ended(64, "--newest-from FILE");
    let newest = write(&_dir.path().join("newest"), "2\n");
    let with_newest = ["freshness", "renew", "--newest-from", &newest];
    let hidden = cron.run(&with_newest);
    assert_eq!(hidden.code, 76, "{}", hidden.err);
    assert!(
        hidden
            .err
            .contains("shows manifest 1, and manifest 2 is the newest"),
        "{}",
        hidden.err
    );
    // The home that deploys knows the newest version by itself, also in a loop that renews.
    for args in [
        &["freshness", "renew"][..],
        &["freshness", "renew", "--every", "15s"],
    ] {
        let rolled_back = tenant.run(args);
        assert_eq!(rolled_back.code, 76, "{}", rolled_back.err);
        assert!(
            rolled_back.err.contains("manifest_version_lower"),
            "{}",
            rolled_back.err
        );
    }
    assert_eq!(statements(&fake), [], "nothing was signed");

    fake.given().show_manifest = None;
    let world = (&fake, &tenant, &cron);
    what_the_deploying_home_printed_is_enough(world, _dir.path());
}

fn what_the_deploying_home_printed_is_enough(
    (fake, tenant, cron): (&Fake, &Person, &Person),
    dir: &Path,
) {
    let deployed = tenant.json(&["renew", "--wait", "0"]).to_string();
    let newest = write(&dir.join("newest"), &deployed);
    let with_newest = ["freshness", "renew", "--newest-from", &newest];
    assert_eq!(cron.json(&with_newest)["manifest"], 3);
    let (_, by_tenant, _) = statements(fake).pop().unwrap();
    assert!(
        !by_tenant,
        "the key of the job that renews signs, and no other key is present"
    );
    assert!(!cron.home.join("tenant.key").exists());
    // With another key the job reports which key the manifest lacks.
    let other = Person::new(dir, "other");
    copy(cron, &other, &["connection.json", "memory.json"]);
    let key = other.json(&["freshness", "key", "--plain-keys"]);
    forget_statements(fake);
    let unnamed = other.run(&with_newest);
    assert_eq!(unnamed.code, 78, "{}", unnamed.err);
    let public = key["public_key"].as_str().unwrap();
    assert!(unnamed.err.contains(public), "{}", unnamed.err);
}
