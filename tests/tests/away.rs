//! A node without a reachable control plane, and a node with an expired join token.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::time::Duration;

use casemate_tests::caller;
use casemate_tests::node::{Node, Settings, Workers};
use casemate_trust::id::FleetId;
use casemate_trust::join::JoinToken;
use casemate_trust::key::SigningKey;

const SOON: Duration = Duration::from_secs(60);

fn token(expires: u64) -> String {
    let key = SigningKey::from_seed(&[1; 32]).unwrap().public();
    let control = ("127.0.0.1:9".to_owned(), key);
    let random = &mut |bytes: &mut [u8]| bytes.fill(7);
    JoinToken::new(
        FleetId([3; 32]),
        control,
        "edge-1".parse().unwrap(),
        "main".parse().unwrap(),
        expires,
        random,
    )
    .expose_secret()
    .to_string()
}

fn folder() -> tempfile::TempDir {
    let folder = tempfile::Builder::new()
        .prefix("casemate-")
        .tempdir()
        .unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_comes_up_without_its_control_plane_and_says_so() {
    let folder = folder();
    let require = ["seccomp", "no_new_privs", "landlock", "capabilities"]
        .map(ToOwned::to_owned)
        .to_vec();
    let mut node = Node::start(
        folder.path(),
        &token(4_000_000_000),
        &Settings {
            hosts: vec![],
            require,
            user: None,
            workers: Workers::default(),
        },
    )
    .unwrap();
    let status = node.wait_for("a spare worker, and a reason", SOON, |status| {
        status["state"]["workers"]["spare"] == 1 && status["disconnected_because"].is_string()
    });
    let status = status.unwrap();
    assert_eq!(
        (&status["connected"], &status["state"]["vault"]["up"]),
        (&false.into(), &true.into())
    );
    for program in ["supervisor", "vault", "gateway", "worker"] {
        let layers = status["sandbox"][program].as_array().unwrap();
        let in_force = |name: &str| {
            layers
                .iter()
                .any(|layer| layer["layer"] == name && layer["in_force"] == true)
        };
        for layer in ["seccomp", "no_new_privs", "capabilities"] {
            assert!(in_force(layer), "{layer} of {program}: {layers:?}");
        }
    }
    let answer = caller::get(node.gateway, "nobody.test", "/").await.unwrap();
    // A node that has received no releases cannot know that no function has this host.
    assert_eq!(answer.status, 503);
    assert!(answer.text().contains("unavailable"), "{}", answer.text());
    assert!(node.stop().unwrap().success());
}

/// User id of Debian's `nobody`.
const NOBODY: u32 = 65_534;

fn nobody_may_have_user_namespaces() -> bool {
    let tried = std::process::Command::new("unshare")
        .args(["--user", "--pid", "--fork", "--net", "--mount", "true"])
        .uid(NOBODY)
        .gid(NOBODY)
        .stderr(std::process::Stdio::null())
        .status();
    tried.is_ok_and(|status| status.success())
}

#[test]
fn a_node_runs_without_any_privilege_where_user_namespaces_are_allowed() {
    if !rustix::process::geteuid().is_root() {
        // The user of the test has no privilege, so the other test covers this case.
        return;
    }
    let folder = folder();
    let namespaces: &[&str] = if nobody_may_have_user_namespaces() {
        &["user", "pid", "network", "mount"]
    } else {
        println!("namespaces skipped: this machine gives the user nobody no user namespace");
        &[]
    };
    let require = ["seccomp", "no_new_privs"].iter().chain(namespaces);
    let require = require.map(|layer| (*layer).to_owned()).collect();
    let settings = Settings {
        hosts: vec![],
        require,
        user: Some(NOBODY),
        workers: Workers::default(),
    };
    let node = Node::start(folder.path(), &token(4_000_000_000), &settings).unwrap();
    let spare = |status: &serde_json::Value| status["state"]["workers"]["spare"] == 1;
    node.wait_for("a sandboxed spare worker", SOON, spare)
        .unwrap();
}

#[test]
fn an_expired_token_is_refused_by_name() {
    let folder = folder();
    let config = folder.path().join("vault.toml");
    std::fs::write(&config, "join_token_file = \"token\"\ntrust_anchors = []\n").unwrap();
    std::fs::write(folder.path().join("token"), token(1000)).unwrap();
    let (_ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let mut vault =
        std::process::Command::new(casemate_tests::programs::program("casemate-vault").unwrap());
    vault
        .arg("--config")
        .arg(&config)
        .arg("--state")
        .arg(folder.path().join("state"))
        .stdin(std::os::fd::OwnedFd::from(theirs));
    let ended = vault.output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!(ended.status.code(), Some(64), "{said}");
    assert!(
        said.contains("the join token has expired") && said.contains("casemate node token"),
        "{said}"
    );
}
