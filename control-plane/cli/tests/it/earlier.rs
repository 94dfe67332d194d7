//! Homes of earlier programs: this program reads them, signs with their keys and uses their memory.

use std::path::Path;

use casemate_trust::id::Digest;
use casemate_trust::statement::{Manifest, Statement as _};
use serde_json::{Value, json};

use super::archive;
use super::fake::Fake;
use super::world::{Person, public_keys};

/// Every format that a home folder has had.
const HOMES: [&str; 1] = ["home-1"];
/// How long the statements of a fixture hold: the longest possible time. The test is to be changed
/// before 2036.
const DAYS: &str = "3660";
const SLOT: &str = "[[credential]]\nbinding = \"pay\"\nsecret = \"PAY_KEY\"\n\
     host = \"api.test\"\nslot = \"bearer\"\n";

/// An operator's home and a tenant's, of a fleet with two epochs of a pool and a tenant with a
/// function and a secret.
async fn write(name: &str) {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::start(3).await;
    let operator = Person::new(dir.path(), "operator");
    let tenant = Person::new(dir.path(), "tenant");
    let public = dir.path().join("public.json");
    std::fs::write(&public, public_keys(&fake).to_string()).unwrap();
    let public = public.to_str().unwrap();
    let made = operator.json(&[
        "fleet",
        "init",
        "--control-public",
        public,
        "--plain-keys",
        "--expires-days",
        DAYS,
    ]);
    let fleet = made["fleet"].as_str().unwrap();
    let url = format!("https://{}#{fleet}", fake.address);
    operator.json_with(
        &["login", &url, "--token-file", "-", "--operator"],
        "casemate_operator\n",
    );
    let key = tenant.json(&["tenant", "key", "--plain-keys"]);
    let (public, fingerprint) = (&key["public_key"], &key["fingerprint"]);
    let added = operator.json(&[
        "tenant",
        "add",
        "shop",
        "--key",
        public.as_str().unwrap(),
        "--key",
        fingerprint.as_str().unwrap(),
        "--host",
        "*.shop.test",
        "--expires-days",
        DAYS,
    ]);
    let login = added["login"].as_str().unwrap();
    tenant.json_with(&["login", login], added["token"].as_str().unwrap());
    let project = tenant.project("web", "web.shop.test", SLOT);
    tenant.json_with(
        &["secret", "put", "PAY_KEY", "--host", "api.test"],
        "sk_live_0123456789abcdef\n",
    );
    tenant.json(&["deploy", "--project", &project]);
    tenant.json(&["freshness", "key", "--plain-keys"]);
    operator.json(&["pool", "rotate", "main", "--expires-days", DAYS]);
    operator.json(&["node", "token", "edge-1", "--out", "token"]);
    let left_out = [
        "operator/lock",
        "tenant/lock",
        "operator-work",
        "tenant-work",
    ];
    archive::pack(name, dir.path(), &left_out);
}

/// Connects an old home to the control plane of this test.
fn log_in(home: &Path, fake: &Fake) {
    let path = home.join("connection.json");
    let mut connection: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    connection["url"] = json!(format!("https://{}", fake.address));
    std::fs::write(&path, connection.to_string()).unwrap();
}

fn digests(envelopes: &[casemate_trust::dsse::Envelope]) -> Vec<Digest> {
    let digests = envelopes
        .iter()
        .map(casemate_trust::dsse::Envelope::payload_digest);
    digests.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn homes_of_earlier_programs_are_read_and_sign() {
    for name in HOMES {
        if archive::is_wanted(name) {
            write(name).await;
        }
        let folder = archive::unpack(name);
        let fake = Fake::start(3).await;
        let operator = Person::new(folder.path(), "operator");
        let tenant = Person::new(folder.path(), "tenant");
        log_in(&operator.home, &fake);
        log_in(&tenant.home, &fake);
        // This control plane has no data: all of it is in the homes.
        operator.json(&["fleet", "publish"]);
        let id = *fake.given().tenants.keys().next().unwrap();
        let renewed = tenant.json(&["renew", "--from-memory"]);
        let found = {
            let given = fake.given();
            let manifest = Manifest::read(given.manifests[&id].last().unwrap()).unwrap();
            json!({
                "roots": digests(&given.roots), "pools": digests(&given.pools),
                "online": digests(given.online.as_slice()), "tenant": digests(&given.tenants[&id]),
                "version": manifest.version, "functions": manifest.functions, "secrets": manifest.secrets,
                "renewed": renewed["manifest"], "fingerprint": operator.json(&["fingerprint"])["fleet"],
            })
        };
        archive::same_as_written(name, &found);
        // Every key signs: the root's a tenant, a pool's and the root's another epoch, the tenant's
        // a manifest.
        operator.json(&["tenant", "hosts", "shop", "--add", "more.shop.test"]);
        operator.json(&["pool", "rotate", "main"]);
        let project = tenant.project("web", "more.shop.test", SLOT);
        let deployed = tenant.json(&["deploy", "--project", &project]);
        let next = renewed["manifest"].as_u64().unwrap() + 1;
        assert_eq!(deployed["manifest"].as_u64(), Some(next));
        let mark = std::fs::read(tenant.home.join("format.json")).unwrap();
        let mark: Value = serde_json::from_slice(&mark).unwrap();
        assert_eq!(mark["format"], 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_home_of_a_newer_program_is_left_alone() {
    let folder = archive::unpack(HOMES[HOMES.len() - 1]);
    let tenant = Person::new(folder.path(), "tenant");
    let mark = tenant.home.join("format.json");
    archive::write_private(&mark, r#"{"format":99,"software":"9.0.0"}"#);
    let memory = std::fs::read(tenant.home.join("memory.json")).unwrap();
    for command in ["whoami", "status", "expiry", "fingerprint"] {
        let refused = tenant.run(&["--json", command]);
        assert_eq!(refused.code, 65, "{command}: {}", refused.err);
        for part in [
            "\"newer\"",
            "format 99",
            "casemate 9.0.0",
            env!("CARGO_PKG_VERSION"),
        ] {
            assert!(refused.err.contains(part), "{part}: {}", refused.err);
        }
    }
    assert_eq!(
        std::fs::read(tenant.home.join("memory.json")).unwrap(),
        memory
    );

    // Data of a newer program is kept even without the mark.
    std::fs::remove_file(&mark).unwrap();
    let text = String::from_utf8(memory).unwrap();
    let later = text.replacen("\"memory\": {", "\"memory\": { \"later\": 1,", 1);
    assert_ne!(text, later);
    archive::write_private(&tenant.home.join("memory.json"), &later);
    let refused = tenant.run(&["status"]);
    assert!(
        refused.code == 74 && refused.err.contains("later"),
        "{}",
        refused.err
    );
}
