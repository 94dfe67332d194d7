//! The program itself, against a control plane that may lie.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

mod fake;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use casemate_trust::join::{JoinRequest, JoinToken};
use casemate_trust::key::{SealingKey, SigningKey};
use casemate_trust::statement::{Manifest, Statement as _};
use serde_json::Value;

use fake::Fake;

const SECRET: &str = "sk_live_4711_do_not_tell";

struct Person {
    home: PathBuf,
    folder: PathBuf,
}

struct Ran {
    code: i32,
    out: String,
    err: String,
}

impl Person {
    fn new(dir: &Path, name: &str) -> Self {
        let folder = dir.join(format!("{name}-work"));
        std::fs::create_dir_all(&folder).unwrap();
        Self {
            home: dir.join(name),
            folder,
        }
    }

    fn try_with(&self, args: &[&str], stdin: &str) -> Ran {
        let mut child = Command::new(env!("CARGO_BIN_EXE_casemate"))
            .arg("--home")
            .arg(&self.home)
            .args(args)
            .current_dir(&self.folder)
            .env("NO_COLOR", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
        let output = child.wait_with_output().unwrap();
        Ran {
            code: output.status.code().unwrap(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    fn run(&self, args: &[&str]) -> Ran {
        tokio::task::block_in_place(|| self.try_with(args, ""))
    }

    fn json_with(&self, args: &[&str], stdin: &str) -> Value {
        let args: Vec<&str> = ["--json"].iter().chain(args).copied().collect();
        let ran = tokio::task::block_in_place(|| self.try_with(&args, stdin));
        assert_eq!(ran.code, 0, "{args:?}\n{}{}", ran.out, ran.err);
        serde_json::from_str(&ran.out).unwrap_or_else(|error| panic!("{error}: {}", ran.out))
    }

    fn json(&self, args: &[&str]) -> Value {
        self.json_with(args, "")
    }

    fn project(&self, name: &str, host: &str, more: &str) -> String {
        let folder = self.folder.join(name);
        std::fs::create_dir_all(folder.join("src")).unwrap();
        let toml =
            format!("name = \"{name}\"\nmain = \"src/main.ts\"\nhosts = [\"{host}\"]\n{more}");
        std::fs::write(folder.join("casemate.toml"), toml).unwrap();
        self.source(name, 1);
        folder.display().to_string()
    }

    fn source(&self, name: &str, version: u32) {
        let text = format!(
            "export default {{ fetch(): Response {{ return new Response('{version}') }} }};\n"
        );
        std::fs::write(self.folder.join(name).join("src/main.ts"), text).unwrap();
    }
}

struct World {
    _dir: tempfile::TempDir,
    fake: Fake,
    operator: Person,
    tenant: Person,
    login: String,
}

fn public_keys(fake: &Fake) -> Value {
    serde_json::json!({ "liveness": fake.key.public(), "quic": fake.key.public(), "api": fake.key.public() })
}

/// A fleet and a tenant `shop` that may answer for `*.shop.test`.
async fn world() -> World {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::start(3).await;
    let (operator, tenant) = (
        Person::new(dir.path(), "operator"),
        Person::new(dir.path(), "tenant"),
    );
    let public = dir.path().join("public.json");
    std::fs::write(&public, public_keys(&fake).to_string()).unwrap();
    let made = operator.json(&[
        "fleet",
        "init",
        "--control-public",
        public.to_str().unwrap(),
        "--plain-keys",
    ]);
    let url = format!(
        "https://{}#{}",
        fake.address,
        made["fleet"].as_str().unwrap()
    );
    let login = operator.json_with(
        &["login", &url, "--token-file", "-", "--operator"],
        "casemate_operator\n",
    );
    assert_eq!(login["published"], 3);
    let key = tenant.json(&["tenant", "key", "--plain-keys"]);
    let (public, fingerprint) = (
        key["public_key"].as_str().unwrap(),
        key["fingerprint"].as_str().unwrap(),
    );
    let added = operator.json(&[
        "tenant",
        "add",
        "shop",
        "--key",
        public,
        "--key",
        fingerprint,
        "--host",
        "*.shop.test",
    ]);
    let login = added["login"].as_str().unwrap().to_owned();
    let done = tenant.json_with(&["login", &login], added["token"].as_str().unwrap());
    assert_eq!(done["tenant"], "shop");
    World {
        _dir: dir,
        fake,
        operator,
        tenant,
        login,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn from_nothing_to_a_function_that_is_rolled_back() {
    let World {
        fake, tenant, _dir, ..
    } = world().await;
    fake.given().nodes = vec!["edge-1", "edge-2"];
    let slot = "[[credential]]\nbinding = \"pay\"\nsecret = \"PAY_KEY\"\nhost = \"api.test\"\nslot = \"bearer\"\n";
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
    let removed = tenant.run(&["secret", "rm", "PAY_KEY"]);
    assert!(
        removed.err.contains("web uses it as env.pay"),
        "{}",
        removed.err
    );
    tenant.json(&["remove", "web"]);
    let gone = tenant.run(&["remove", "web"]);
    assert_eq!(gone.code, 66, "{}", gone.err);
    // Nothing that left this machine, and nothing that stays on it, holds the value.
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
async fn another_key_at_the_same_address_is_not_the_control_plane() {
    let World {
        fake, tenant, _dir, ..
    } = world().await;
    let impostor = Fake::start(4).await;
    {
        // It shows everything that the right one shows.
        let (mut other, given) = (impostor.given(), fake.given());
        (other.roots, other.online) = (given.roots.clone(), given.online.clone());
    }
    let connection = tenant.home.join("connection.json");
    let text = std::fs::read_to_string(&connection).unwrap();
    std::fs::write(
        &connection,
        text.replace(&fake.address.to_string(), &impostor.address.to_string()),
    )
    .unwrap();
    let ran = tenant.run(&["--json", "status"]);
    assert_eq!(ran.code, 76, "{}", ran.err);
    assert!(ran.err.contains("not_the_control_plane"), "{}", ran.err);
    assert!(impostor.given().heard.is_empty(), "it heard the token");
    let login = format!("https://{}#{}", impostor.address, "0".repeat(64));
    let stranger = Person {
        home: tenant.home.with_file_name("stranger"),
        folder: tenant.folder.clone(),
    };
    let ran = stranger.run(&["login", &login, "--token", "casemate_x"]);
    assert_eq!(ran.code, 76, "{}", ran.err);
    assert!(ran.err.contains("fleet_other"), "{}", ran.err);
    assert!(impostor.given().heard.is_empty(), "it heard the token");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_by_the_control_plane_is_refused() {
    let World {
        fake, tenant, _dir, ..
    } = world().await;
    let project = tenant.project("web", "web.shop.test", "");
    tenant.json(&["deploy", "--project", &project]);
    tenant.source("web", 2);
    tenant.json(&["deploy", "--project", &project]);
    fake.given().show_manifest = Some(0);
    for command in [
        &["status"][..],
        &["deploy", "--project", &project],
        &["renew"],
    ] {
        let ran = tenant.run(command);
        assert_eq!(ran.code, 76, "{}", ran.err);
        assert!(ran.err.contains("manifest_version_lower"), "{}", ran.err);
    }
    let id = *fake.given().manifests.keys().next().unwrap();
    assert_eq!(fake.given().manifests[&id].len(), 2);
    let renewed = tenant.json(&["renew", "--from-memory"]);
    assert_eq!(renewed["manifest"], 3);
    // Silence deletes nothing either.
    fake.given().show_manifest = Some(99);
    let ran = tenant.run(&["deploy", "--project", &project]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(
        ran.err.contains("has lost this tenant's manifest"),
        "{}",
        ran.err
    );
    let newest = fake.given().manifests[&id].last().cloned().unwrap();
    assert_eq!(Manifest::read(&newest).unwrap().version, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_deploys_at_once_one_is_told_and_both_are_there() {
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
    let (mut told, rounds) = (0, 6);
    for round in 0..rounds {
        tenant.source("one", round);
        other.source("two", round);
        let (a, b) = std::thread::scope(|scope| {
            let a = scope.spawn(|| tenant.try_with(&["deploy", "--project", &one], ""));
            let b = scope.spawn(|| other.try_with(&["deploy", "--project", &two], ""));
            tokio::task::block_in_place(|| (a.join().unwrap(), b.join().unwrap()))
        });
        for ran in [a, b] {
            assert_eq!(ran.code, 0, "{}", ran.err);
            told += usize::from(ran.err.contains("somebody else signed manifest"));
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
    assert!(told > 0, "never at once: this proves nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_given_is_refused_before_anything_is_uploaded() {
    let World {
        fake,
        operator,
        tenant,
        _dir,
        ..
    } = world().await;
    let project = tenant.project("web", "web.other.test", "");
    let ran = tenant.run(&["deploy", "--project", &project]);
    assert_eq!(ran.code, 64, "{}", ran.err);
    assert!(ran.err.contains("allowed: *.shop.test"), "{}", ran.err);
    assert!(fake.given().bundles.is_empty() && fake.given().objects.is_empty());
    operator.json(&["tenant", "hosts", "shop", "--add", "web.other.test"]);
    tenant.json(&["deploy", "--project", &project]);

    let slot =
        "[[credential]]\nbinding = \"pay\"\nsecret = \"K\"\nhost = \"b.test\"\nslot = \"bearer\"\n";
    tenant.json_with(&["secret", "put", "K", "--host", "a.test"], "v");
    let wider = tenant.project("wider", "wider.shop.test", slot);
    let objects = fake.given().objects.len();
    let ran = tenant.run(&["deploy", "--project", &wider]);
    assert_eq!(ran.code, 64, "{}", ran.err);
    assert!(
        ran.err.contains("the secret may not go to b.test"),
        "{}",
        ran.err
    );
    assert_eq!(fake.given().objects.len(), objects);
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_has_an_exit_code_and_a_next_step() {
    let World {
        tenant, fake, _dir, ..
    } = world().await;
    let project = tenant.project("web", "web.shop.test", "");
    std::fs::write(
        tenant.folder.join("web/src/main.ts"),
        "export default {\n  fetch( {\n",
    )
    .unwrap();
    let nothing = tenant.folder.display().to_string();
    let put = ["secret", "put", "K", "--host", "a.test"];
    let cases: &[(&[&str], &str, i32, &str)] = &[
        (&["deploy", "--project", &project], "", 65, "src/main.ts:"),
        (&["deploy", "--project", &nothing], "", 66, "casemate init"),
        (&put, "a\r\nb", 65, "CR at byte 1"),
        (&put, "a\0b", 65, "NUL at byte 1"),
        (&put, "", 65, "got 0"),
        (
            &["secret", "put", "K", "--host", "a.test", "--value", "hush"],
            "",
            64,
            "standard input",
        ),
        (
            &["secret", "put", "K", "hush", "--host", "a.test"],
            "",
            64,
            "standard input",
        ),
        (
            &["secret", "put", "K", "--host", "a.test", "--pool", "eu"],
            "v",
            66,
            "there is no pool eu",
        ),
        (&["rollback", "nothing"], "", 66, "nothing is deployed yet"),
        (&["fleet", "publish"], "", 78, "casemate fleet init"),
        (
            &["login", "http://x"],
            "",
            64,
            "https://HOST:PORT#FINGERPRINT",
        ),
        (&["login", "https://x#ab"], "", 64, "64 hex digits"),
        (&["renew"], "", 66, "casemate deploy"),
    ];
    for (args, stdin, code, text) in cases {
        let ran = tokio::task::block_in_place(|| tenant.try_with(args, stdin));
        assert_eq!(ran.code, *code, "{args:?}\n{}", ran.err);
        assert!(
            ran.err.contains(text),
            "{args:?}: {text} is not in\n{}",
            ran.err
        );
        assert!(
            ran.err.contains("next:") && !ran.err.contains("hush"),
            "{args:?}\n{}",
            ran.err
        );
    }
    assert!(fake.given().manifests.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_refuses_is_named() {
    let World {
        fake, tenant, _dir, ..
    } = world().await;
    fake.given().nodes = vec!["edge-1", "edge-2"];
    fake.given().refuses = Some("edge-2");
    let project = tenant.project("web", "web.shop.test", "");
    let ran = tenant.run(&["deploy", "--project", &project]);
    assert_eq!(ran.code, 76, "{}", ran.err);
    assert!(
        ran.err
            .contains("node edge-2 refuses manifest 1 (release_malformed)"),
        "{}",
        ran.err
    );
}

fn ask(fake: &Fake, token: &str, seed: u8) {
    let token: JoinToken = token.parse().unwrap();
    let node = SigningKey::from_seed(&[seed; 32]).unwrap();
    let request = JoinRequest {
        fleet: token.fleet,
        node: token.node.clone(),
        pool: token.pool.clone(),
        node_key: node.public(),
        sealing_key: SealingKey::of_seed(&[seed; 32]).unwrap(),
    };
    fake.ask(request.sign(&[&token.key().unwrap(), &node]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_joins_once_and_gets_the_key_of_each_epoch() {
    let World {
        fake,
        operator,
        _dir,
        ..
    } = world().await;
    let token = operator.json(&["node", "token", "edge-1"]);
    assert_eq!(token["control"], "control.test:7000");
    let token = token["token"].as_str().unwrap();
    let raw = operator.home.join("joins.json");
    assert!(
        !std::fs::read_to_string(raw)
            .unwrap()
            .contains(&token[5..40]),
        "the token itself is not kept"
    );
    ask(&fake, token, 8);
    let admitted = operator.json(&["node", "admit", "edge-1"]);
    assert_eq!(admitted["admitted"][0]["node"], "edge-1");
    assert_eq!(fake.given().grants.len(), 1);
    // The same token from another node.
    fake.given().joins.clear();
    ask(&fake, token, 9);
    let ran = operator.run(&["node", "admit", "edge-1", "--wait", "1"]);
    assert_eq!(ran.code, 76, "{}", ran.err);
    assert!(ran.err.contains("token_used"), "{}", ran.err);
    assert_eq!(fake.given().admitted.len(), 1);
    // A rotation gives the new key to whoever stays.
    fake.given().joins.clear();
    ask(&fake, token, 8);
    let rotated = operator.json(&["pool", "rotate", "main"]);
    assert_eq!(
        (&rotated["epoch"], &rotated["grants"]),
        (&2.into(), &1.into())
    );
    operator.json(&["node", "revoke", "edge-1"]);
    let rotated = operator.json(&["pool", "rotate", "main"]);
    assert_eq!(
        (&rotated["epoch"], &rotated["grants"]),
        (&3.into(), &0.into())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_control_plane_the_exit_code_is_69() {
    let World {
        tenant, fake, _dir, ..
    } = world().await;
    let connection = tenant.home.join("connection.json");
    let text = std::fs::read_to_string(&connection).unwrap();
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    std::fs::write(
        &connection,
        text.replace(&fake.address.to_string(), &free.to_string()),
    )
    .unwrap();
    let ran = tenant.run(&["status"]);
    assert_eq!(ran.code, 69, "{}", ran.err);
    assert!(ran.err.contains("does not answer"), "{}", ran.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn listings_are_json_and_tables() {
    let World {
        fake,
        operator,
        tenant,
        _dir,
        ..
    } = world().await;
    let token = operator.json(&["node", "token", "edge-1"]);
    ask(&fake, token["token"].as_str().unwrap(), 8);
    operator.json(&["node", "admit"]);
    assert_eq!(operator.json(&["node", "list"])[0]["name"], "edge-1");
    assert_eq!(operator.json(&["node", "show", "edge-1"])["pool"], "main");
    assert_eq!(operator.json(&["pool", "list"])[0]["epoch"], 1);
    assert_eq!(operator.json(&["tenant", "list"])[0]["name"], "shop");
    assert_eq!(
        operator.json(&["tenant", "show", "shop"])["hosts"][0],
        "*.shop.test"
    );
    assert_eq!(operator.json(&["token", "list"])[0]["id"], "t1");
    assert_eq!(operator.json(&["token", "revoke", "t1"])["revoked"], "t1");
    let made = operator.json(&[
        "token",
        "create",
        "--scope",
        "tenant",
        "--tenant",
        "shop",
        "--out",
        "token.txt",
    ]);
    assert!(made["token"].is_null());
    assert!(
        std::fs::read_to_string(operator.folder.join("token.txt"))
            .unwrap()
            .starts_with("casemate_")
    );
    let fingerprint = operator.json(&["fingerprint"]);
    assert!(
        fingerprint["login"]
            .as_str()
            .unwrap()
            .ends_with(fingerprint["fleet"].as_str().unwrap())
    );
    for (args, text) in [
        (&["node", "list"][..], "edge-1  main  never seen"),
        (
            &["node", "show", "edge-1"],
            "pool       main (key epochs [1])",
        ),
        (&["pool", "list"], "POOL  EPOCH"),
        (&["tenant", "list"], "shop"),
        (&["tenant", "show", "shop"], "host       *.shop.test"),
        (&["token", "list"], "t1     operator  never    first"),
        (&["completions", "bash"], "complete -F"),
    ] {
        let ran = operator.run(args);
        assert!(
            ran.code == 0 && ran.out.contains(text),
            "{args:?}: {text}\n{}{}",
            ran.out,
            ran.err
        );
    }
    assert_eq!(tenant.json(&["secret", "list"]), serde_json::json!([]));
    let status = tenant.run(&["status"]);
    assert!(
        status.out.contains("nothing is deployed yet"),
        "{}",
        status.out
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_audit_chain_is_found_over_pages() {
    use casemate_api::audit::AuditRecord;
    let World {
        fake,
        operator,
        _dir,
        ..
    } = world().await;
    for seq in 1..=5 {
        let mut given = fake.given();
        let next = AuditRecord::follow(given.audit.last(), seq, "a", "b", "c");
        given.audit.push(next);
    }
    assert_eq!(
        operator.json(&["audit", "--last", "2"])["records"][0]["seq"],
        4
    );
    let verified = operator.json(&["audit", "--verify", "--last", "3"]);
    assert_eq!(
        (
            &verified["verified"],
            verified["records"].as_array().unwrap().len()
        ),
        (&5.into(), 3)
    );
    fake.given().audit[2].subject = "d".into();
    let ran = operator.run(&["audit", "--verify"]);
    assert_eq!(ran.code, 76, "{}", ran.err);
    assert!(ran.err.contains("broken at record 3"), "{}", ran.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_are_followed_and_cannot_move_the_cursor() {
    use std::io::{BufRead as _, BufReader};
    let World { tenant, _dir, .. } = world().await;
    let ran = tenant.run(&["logs", "--last", "1"]);
    assert!(
        ran.out.contains("edge-1/web two") && !ran.out.contains("one"),
        "{}",
        ran.out
    );
    assert!(!ran.out.contains('\u{1b}'), "{}", ran.out);
    let mut child = Command::new(env!("CARGO_BIN_EXE_casemate"))
        .arg("--home")
        .arg(&tenant.home)
        .args(["--json", "logs", "web", "--follow"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let read = |line: std::io::Result<String>| {
        serde_json::from_str::<Value>(&line.unwrap()).unwrap()["seq"].clone()
    };
    // The stream ends after the third record and is opened again behind it: nothing is shown twice.
    let seen: Vec<Value> = tokio::task::block_in_place(|| lines.take(3).map(read).collect());
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(seen, [1, 2, 3]);
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
    let sealed = one.json_with(&put, "value");
    assert_eq!(sealed["pools"], serde_json::json!(["eu", "main"]));
}
