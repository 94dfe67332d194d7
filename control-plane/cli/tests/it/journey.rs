//! A person's way from nothing to a running function.

use std::path::{Path, PathBuf};

use casemate_api::tenant::StoppedCredential;
use casemate_trust::statement::{Manifest, Statement as _};
use serde_json::Value;

use super::fake::Fake;
use super::world::{Person, World, public_keys, world};

const SECRET: &str = "sk_live_4711_do_not_tell";

fn nothing_is_withdrawn_unasked(tenant: &Person) {
    for withdrawal in [&["secret", "rm", "PAY_KEY"][..], &["remove", "web"]] {
        let unconfirmed = tenant.run(withdrawal);
        let says_how = unconfirmed.err.contains("--yes");
        assert!(unconfirmed.code == 64 && says_how, "{}", unconfirmed.err);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn from_nothing_to_a_function_that_is_rolled_back() {
    let World {
        fake, tenant, _dir, ..
    } = world().await;
    fake.given().nodes = vec!["edge-1", "edge-2"];
    let slot = "[[credential]]\nbinding = \"pay\"\nsecret = \"PAY_KEY\"\n\
                host = \"api.test\"\nslot = \"bearer\"\n";
    let project = tenant.project("web", "web.shop.test", slot);
    let sealed = tenant.json_with(
        &["secret", "put", "PAY_KEY", "--host", "api.test"],
        &format!("{SECRET}\n"),
    );
    assert_eq!(
        (&sealed["manifest"], &sealed["version"]),
        (&1.into(), &1.into())
    );
    let first = tenant.json(&["deploy", "--project", &project]);
    assert_eq!(
        (&first["manifest"], &first["nodes"]["current"]),
        (&2.into(), &2.into())
    );
    tenant.source("web", 2);
    let second = tenant.json(&["deploy", "--project", &project]);
    assert_ne!(first["release"], second["release"]);
    let back = tenant.json(&["rollback", "web"]);
    assert_eq!(back["release"], first["release"]);
    let prefix = &second["release"].as_str().unwrap()[..10];
    assert_eq!(
        tenant.json(&["rollback", "web", "--to", prefix])["release"],
        second["release"]
    );
    tenant.json(&["renew", "--expires-days", "10"]);
    let status = tenant.run(&["--json", "status"]);
    assert!(
        status.err.contains("the manifest expires in 10 days"),
        "{}",
        status.err
    );
    let status: Value = serde_json::from_str(&status.out).unwrap();
    assert_eq!(status["manifest_version"], 6);
    assert_eq!(status["functions"][0]["fallbacks"][0], first["release"]);
    assert_eq!(status["secrets"][0]["name"], "PAY_KEY");
    assert_eq!(status["storage"]["used_bytes"], 3 << 20);
    let shown = tenant.run(&["status"]).out;
    assert!(shown.contains("storage: 3 of 1024 MiB"), "{shown}");
    let pruned = tenant.json(&["prune", "web", "--keep", "0"]);
    assert_eq!(pruned["forgotten"], serde_json::json!([first["release"]]));
    tenant.run(&["prune", "web", "--keep", "0"]).ended(66, "");
    let rollback = tenant.run(&["rollback", "web"]);
    rollback.ended(66, "no earlier release");
    nothing_is_withdrawn_unasked(&tenant);
    let removed = tenant.run(&["secret", "rm", "PAY_KEY", "--yes"]);
    removed.ended(0, "web uses it as env.pay");
    tenant.json(&["remove", "web", "--yes"]);
    let gone = tenant.run(&["remove", "web", "--yes"]);
    assert_eq!(gone.code, 66, "{}", gone.err);
    // No request that left this machine, and no file that stays on it, contains the value.
    let mut all = fake.given().heard.clone();
    for entry in walk(&tenant.home) {
        all.extend(std::fs::read(entry).unwrap());
    }
    for form in [SECRET.to_owned(), hex::encode(SECRET), base64(SECRET)] {
        assert!(
            !all.windows(form.len())
                .any(|bytes| bytes == form.as_bytes()),
            "{form}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn status_names_stopped_credentials_and_the_next_step() {
    let World {
        fake, tenant, _dir, ..
    } = world().await;
    let shown = tenant.run(&["status"]).out;
    assert!(!shown.contains("credential_reflected"), "{shown}");
    fake.given().stopped = vec![StoppedCredential {
        function: "web".parse().unwrap(),
        secret: "PAY_KEY".parse().unwrap(),
        nodes: vec!["edge-1".parse().unwrap(), "edge-2".parse().unwrap()],
        until: 1_893_456_000,
    }];
    let status = tenant.json(&["status"]);
    assert_eq!(status["stopped_credentials"][0]["secret"], "PAY_KEY");
    let shown = tenant.run(&["status"]).out;
    let line = shown.lines().find(|line| line.contains("edge-2")).unwrap();
    let columns: Vec<_> = line.split_whitespace().collect();
    let until = ["2030-01-01", "00:00", "UTC"];
    assert_eq!(
        (&columns[..2], &columns[2..5]),
        (&["web", "PAY_KEY"][..], &until[..])
    );
    assert_eq!(columns[5..], ["edge-1", "edge-2"]);
    assert!(shown.contains("--reflection scrub"), "{shown}");
}

fn base64(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD_NO_PAD.encode(text)
}

fn walk(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder)
        .unwrap()
        .flatten()
        .map(|entry| entry.path());
    entries
        .flat_map(|path| {
            if path.is_dir() {
                walk(&path)
            } else {
                vec![path]
            }
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_concurrent_deploys_one_is_retried_and_both_are_kept() {
    let World {
        fake,
        tenant,
        login,
        _dir,
        ..
    } = world().await;
    let other = Person::new(_dir.path(), "colleague");
    std::fs::create_dir_all(&other.home).unwrap();
    for file in ["tenant.key", "tenant.pub"] {
        std::fs::copy(tenant.home.join(file), other.home.join(file)).unwrap();
    }
    other.json_with(&["login", &login], "casemate_1");
    let one = tenant.project("one", "one.shop.test", "");
    let two = other.project("two", "two.shop.test", "");
    let (mut told, mut rounds) = (0, 0);
    // Six rounds, and more if one deployment always ended before the other began.
    while rounds < 6 || (told == 0 && rounds < 60) {
        rounds += 1;
        tenant.source("one", rounds);
        other.source("two", rounds);
        let (a, b) = std::thread::scope(|scope| {
            let a = scope.spawn(|| tenant.try_with(&["deploy", "--project", &one], ""));
            let b = scope.spawn(|| other.try_with(&["deploy", "--project", &two], ""));
            tokio::task::block_in_place(|| (a.join().unwrap(), b.join().unwrap()))
        });
        for ran in [a, b] {
            assert_eq!(ran.code, 0, "{}", ran.err);
            told += usize::from(ran.err.contains("was already signed elsewhere"));
        }
    }
    let given = fake.given();
    let manifests: Vec<_> = given
        .manifests
        .values()
        .next()
        .unwrap()
        .iter()
        .map(|held| Manifest::read(held).unwrap())
        .collect();
    assert_eq!(manifests.len(), 2 * rounds as usize);
    assert_eq!(manifests.last().unwrap().functions.len(), 2);
    assert!(
        told > 0,
        "the deployments never overlapped: the test proves nothing"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_threshold_of_keys_and_a_passphrase() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::start(3).await;
    let people = ["operator", "one", "two"].map(|name| Person::new(dir.path(), name));
    let [operator, one, two] = &people;
    let (public, passphrase) = (
        dir.path().join("public.json"),
        dir.path().join("passphrase"),
    );
    std::fs::write(&public, public_keys(&fake).to_string()).unwrap();
    std::fs::write(&passphrase, "correct horse\n").unwrap();
    let passphrase = passphrase.to_str().unwrap();
    let init = [
        "fleet",
        "init",
        "--control-public",
        public.to_str().unwrap(),
    ];
    let ran = operator.run(&init);
    assert_eq!(ran.code, 77, "nobody can be asked: {}", ran.err);
    let with = |args: &[&'static str]| [&["--passphrase-file", passphrase], args].concat();
    let made = operator.json(&[&init[..], &["--passphrase-file", passphrase]].concat());
    let url = format!(
        "https://{}#{}",
        fake.address,
        made["fleet"].as_str().unwrap()
    );
    operator.json_with(&["login", &url], "casemate_operator");
    let ran = operator.run(&["pool", "add", "eu"]);
    assert_eq!(ran.code, 77, "{}", ran.err);
    operator.json(&with(&["pool", "add", "eu"]));
    let keys = [one, two]
        .map(|person| person.json(&["tenant", "key", "--plain-keys"])["public_key"].clone());
    let [first, second] = [0, 1].map(|at| keys[at].as_str().unwrap());
    let add = [
        "tenant",
        "add",
        "shop",
        "--key",
        first,
        "--key",
        second,
        "--threshold",
        "2",
        "--host",
        "*.shop.test",
    ];
    let ran = operator.run(&[
        "tenant",
        "add",
        "shop",
        "--key",
        &"0".repeat(64),
        "--key",
        first,
        "--host",
        "a.test",
    ]);
    assert_eq!(ran.code, 76, "another fingerprint: {}", ran.err);
    let added = operator.json(&[&add[..], &["--passphrase-file", passphrase]].concat());
    one.json_with(
        &["login", added["login"].as_str().unwrap()],
        added["token"].as_str().unwrap(),
    );
    two_keys_sign(one, two);
}

/// A deployment and a secret need both keys.
fn two_keys_sign(one: &Person, two: &Person) {
    let project = one.project("web", "web.shop.test", "pools = [\"main\", \"eu\"]\n");
    let ran = one.run(&["deploy", "--project", &project]);
    assert_eq!(ran.code, 78, "{}", ran.err);
    assert!(
        ran.err.contains("2 keys must sign, 1 are here"),
        "{}",
        ran.err
    );
    let other = two.home.join("tenant.key");
    one.json(&[
        "deploy",
        "--project",
        &project,
        "--with-key",
        other.to_str().unwrap(),
    ]);
    let put = [
        "secret",
        "put",
        "K",
        "--host",
        "a.test",
        "--with-key",
        other.to_str().unwrap(),
    ];
    let sealed = one.json_with(&put, "a value of sixteen bytes");
    assert_eq!(sealed["pools"], serde_json::json!(["eu", "main"]));
}
