//! Tests of expiry and of wrong clocks.

use casemate_api::node::{CheckView, HealthView};

use super::fleet::ask;
use super::world::{Person, World, world};

const DAY: i64 = 24 * 60 * 60;

/// A tenant with a statement that holds for the given number of days.
fn short_lived(operator: &Person, dir: &std::path::Path, days: &str) {
    let bank = Person::new(dir, "bank");
    let key = bank.json(&["tenant", "key", "--plain-keys"]);
    let key = key["public_key"].as_str().unwrap();
    operator.json(&[
        "tenant",
        "add",
        "bank",
        "--key",
        key,
        "--host",
        "bank.test",
        "--expires-days",
        days,
    ]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_clock_is_named_with_both_times_and_signs_nothing() {
    let World {
        fake,
        operator,
        tenant,
        _dir,
        ..
    } = world().await;
    let project = tenant.project("web", "web.shop.test", "");
    let deploy = ["deploy", "--project", &project];
    let year = |text: &str| text.matches(" UTC").count() >= 2;
    for (ahead_secs, signs) in [
        (3 * DAY, false),
        (-500 * DAY, false),
        (240, true),
        (-240, true),
        (0, true),
    ] {
        fake.given().clock_ahead_secs = ahead_secs;
        let before = fake.given().manifests.values().map(Vec::len).sum::<usize>();
        let put = ["secret", "put", "KEY", "--host", "api.test"];
        let put = tokio::task::block_in_place(|| tenant.try_with(&put, "hunter2hunter2hunter2"));
        for ran in [tenant.run(&deploy), put] {
            assert_eq!(ran.code == 0, signs, "{ahead_secs}: {}", ran.err);
            assert_eq!(
                ran.err.contains("clock"),
                !signs,
                "{ahead_secs}: {}",
                ran.err
            );
            assert!(signs || year(&ran.err), "{}", ran.err);
        }
        let published = operator.run(&["fleet", "publish"]);
        assert_eq!(
            published.code == 0,
            signs,
            "{ahead_secs}: {}",
            published.err
        );
        let hosts = operator.run(&["tenant", "hosts", "shop"]);
        assert_eq!(hosts.code == 0, signs, "{ahead_secs}: {}", hosts.err);
        let after = fake.given().manifests.values().map(Vec::len).sum::<usize>();
        assert_eq!(after - before, if signs { 2 } else { 0 });
    }
    // Commands that only read work, and the error of a command that fails for another reason names
    // the clock too.
    fake.given().clock_ahead_secs = 3 * DAY + 60;
    let ran = tenant.run(&["status"]);
    assert!(
        ran.code == 0 && ran.err.contains("3 days behind"),
        "{}",
        ran.err
    );
    fake.given().refuse_statements = true;
    let ran = operator.run(&["--json", "tenant", "show", "nobody"]);
    assert!(
        ran.code == 66 && ran.err.contains("behind the control plane"),
        "{}",
        ran.err
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_that_expires_is_listed_and_warned_of_in_time() {
    let World {
        fake,
        operator,
        tenant,
        _dir,
        ..
    } = world().await;
    let quiet = operator.run(&["pool", "list"]);
    assert!(!quiet.err.contains("expires"), "{}", quiet.err);
    short_lived(&operator, _dir.path(), "20");
    let token = operator.json(&["node", "token", "edge-1", "--valid", "2h"]);
    ask(&fake, token["token"].as_str().unwrap(), 8);
    operator.json(&["node", "token", "edge-2", "--valid", "2h"]);
    operator.json(&["node", "admit", "edge-1"]);
    fake.given().health = Some(unwell());
    // Every command of a person who can renew it.
    for args in [&["pool", "list"][..], &["token", "list"], &["node", "list"]] {
        let ran = operator.run(args);
        assert!(
            ran.err
                .contains("the statement of tenant bank expires in 20 days"),
            "{}",
            ran.err
        );
    }
    let ran = operator.run(&["node", "list"]);
    assert!(
        ran.out.contains("HEALTH")
            && ran.out.contains("protocol lease certificate")
            && ran
                .err
                .contains("node edge-1 is not served: no common push protocol"),
        "{}",
        ran.out
    );
    assert!(
        ran.err.contains("a certificate of node edge-1 has EXPIRED"),
        "{}",
        ran.err
    );
    let shown = operator.run(&["node", "show", "edge-1"]);
    assert!(
        shown.out.contains("NOT OK: over") && shown.out.contains("vault      runs"),
        "{}",
        shown.out
    );
    the_operator_sees_all(&operator);
    a_tenant_sees_who_renews(&tenant);
}

/// A node that is not served, whose lease and certificate are over.
fn unwell() -> HealthView {
    HealthView {
        checks: vec![
            CheckView {
                name: "protocol".into(),
                ok: false,
                detail: "no common push protocol".into(),
            },
            CheckView {
                name: "lease".into(),
                ok: false,
                detail: "over".into(),
            },
            CheckView {
                name: "vault".into(),
                ok: true,
                detail: "runs".into(),
            },
        ],
        certificate_expires: Some(1),
    }
}

fn the_operator_sees_all(operator: &Person) {
    let listed = operator.json(&["expiry"]);
    let listed = listed.as_array().unwrap();
    let kinds: Vec<_> = listed
        .iter()
        .map(|item| item["kind"].as_str().unwrap())
        .collect();
    assert_eq!(kinds[0], "certificate");
    assert_eq!(kinds[1], "join token");
    assert_eq!(
        (kinds[2], &listed[2]["name"], &listed[2]["left_days"]),
        ("tenant", &"bank".into(), &20.into())
    );
    for kind in ["root", "online key", "pool", "grant"] {
        assert!(kinds.contains(&kind), "{kind}: {kinds:?}");
    }
    assert_eq!(listed[0]["expired"], true);
    let table = operator.run(&["expiry"]).out;
    assert!(
        table.contains("EXPIRED") && table.contains("20 days (!)"),
        "{table}"
    );
}

fn a_tenant_sees_who_renews(tenant: &Person) {
    let project = tenant.project("web", "web.shop.test", "");
    tenant.json(&["deploy", "--project", &project, "--expires-days", "10"]);
    let status = tenant.run(&["secret", "list"]);
    assert!(
        status.err.contains("the manifest expires in 10 days"),
        "{}",
        status.err
    );
    let listed = tenant.json(&["expiry"]);
    let of = |kind: &str| {
        let found = listed
            .as_array()
            .unwrap()
            .iter()
            .find(|item| item["kind"] == kind);
        found.unwrap_or_else(|| panic!("{kind}: {listed}"))["by"].clone()
    };
    assert_eq!(of("manifest"), "tenant");
    for kind in ["tenant", "pool", "root", "online key", "token"] {
        assert_eq!(of(kind), "operator");
    }
}
