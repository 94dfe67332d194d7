//! The program: its output and its exit codes.
// A panic is how a test fails.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use casemate_api::audit::AuditPage;
use casemate_api::fleet::PublicKeys;
use casemate_api::token::{MadeToken, NewToken, Scope, TokenList};
use parking_lot::Mutex;

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_casemate-control"));
    command
        .env_remove("CASEMATE_LOG")
        .env_remove("CASEMATE_LOG_FORMAT");
    command
}

fn init(state: &Path) -> Output {
    program()
        .args(["init", "--json", "--state"])
        .arg(state)
        .output()
        .unwrap()
}

fn config(folder: &Path, api: &str) -> std::path::PathBuf {
    let path = folder.join("control.toml");
    std::fs::write(
        &path,
        format!("state = \"state\"\napi = \"{api}\"\nquic = \"127.0.0.1:0\"\n"),
    )
    .unwrap();
    path
}

fn serve(config: &Path) -> Output {
    program()
        .args(["serve", "--config"])
        .arg(config)
        .output()
        .unwrap()
}

/// A running program and its line about being ready.
fn start(config: &Path) -> (Child, String) {
    let mut child = program()
        .args(["serve", "--config"])
        .arg(config)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let ready = lines
        .map_while(Result::ok)
        .find(|line| line.contains("ready api="))
        .expect("it becomes ready");
    (child, ready)
}

fn signal(child: &Child, signal: &str) {
    let sent = Command::new("kill")
        .args([signal, &child.id().to_string()])
        .status()
        .unwrap();
    assert!(sent.success());
}

#[track_caller]
fn ended(output: &Output, code: i32, says: &str) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert!(text.contains(says), "{text}");
}

/// The program as a service manager runs it: for a user who owns the folder and may not write beside it.
fn as_the_service(folder: &Path) -> Command {
    let state = folder.join("state");
    std::fs::create_dir(&state).unwrap();
    let mut command = program();
    if std::fs::metadata("/proc/self").unwrap().uid() == 0 {
        let (nobody, nogroup) = (65_534, 65_534);
        std::os::unix::fs::chown(&state, Some(nobody), Some(nogroup)).unwrap();
        command.uid(nobody).gid(nogroup);
    }
    let only_read = std::fs::Permissions::from_mode(0o555);
    std::fs::set_permissions(folder, only_read).unwrap();
    command
}

#[test]
fn an_empty_folder_of_the_service_user_is_filled_in_place() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let mut command = as_the_service(folder.path());
    // A mounted file system contains this, and a killed program leaves that.
    std::fs::create_dir(state.join("lost+found")).unwrap();
    std::fs::create_dir(state.join(".state.new-1")).unwrap();
    let inode = |path: &Path| std::fs::metadata(path).unwrap().ino();
    let before = inode(&state);
    let made = command.args(["init", "--state"]).arg(&state).output();
    let made = made.unwrap();
    let told = String::from_utf8_lossy(&made.stderr);
    assert!(made.status.success(), "{told}");
    assert_eq!(inode(&state), before, "the folder is kept");
    let mode = std::fs::metadata(&state).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    let names = std::fs::read_dir(&state).unwrap();
    let name = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().file_name().into_string();
    let names: BTreeSet<String> = names.map(|entry| name(entry).unwrap()).collect();
    assert!(names.contains("keys") && names.contains("store.redb"));
    let is_hidden = |name: &String| name.starts_with('.');
    assert!(!names.iter().any(is_hidden), "{names:?}");
    ended(&init(&state), 73, "not empty");
    // A backup is restored into such a folder too.
    let backup = folder.path().join("state/backup");
    let copied = program()
        .args(["backup", "--state"])
        .arg(&state)
        .arg("--to")
        .arg(&backup)
        .output()
        .unwrap();
    assert!(copied.status.success(), "{copied:?}");
    let other = tempfile::tempdir().unwrap();
    let place = other.path().join("state");
    std::fs::create_dir(&place).unwrap();
    let before = inode(&place);
    let restored = program()
        .args(["restore", "--from"])
        .arg(&backup)
        .arg("--state")
        .arg(&place)
        .output()
        .unwrap();
    assert!(restored.status.success(), "{restored:?}");
    assert_eq!(inode(&place), before, "the folder is kept");
    assert!(place.join("keys").is_dir());
}

#[test]
fn init_makes_private_files_once() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("deep/state");
    let made = init(&state);
    assert!(
        made.status.success(),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );
    let said: serde_json::Value = serde_json::from_slice(&made.stdout).unwrap();
    assert!(said["keys"]["liveness"].is_string() && said["operator_token_file"].is_string());
    let mode = |path: &str| {
        std::fs::metadata(state.join(path))
            .unwrap()
            .permissions()
            .mode()
            & 0o777
    };
    for file in [
        "operator.token",
        "keys/api.key",
        "keys/quic.key",
        "keys/liveness.key",
        "keys/quic-socket.key",
    ] {
        assert_eq!(mode(file), 0o600, "{file}");
    }
    assert_eq!(mode(""), 0o700);
    let before = std::fs::read(state.join("keys/api.key")).unwrap();
    ended(&init(&state), 73, "not empty");
    assert_eq!(std::fs::read(state.join("keys/api.key")).unwrap(), before);
    assert_eq!(
        std::fs::read_dir(folder.path().join("deep"))
            .unwrap()
            .count(),
        1,
        "nothing is left behind"
    );
}

#[test]
fn the_program_reports_ready_stops_on_sigterm_and_survives_sigkill() {
    let folder = tempfile::tempdir().unwrap();
    init(&folder.path().join("state"));
    let config = config(folder.path(), "127.0.0.1:0");
    for round in 0..3 {
        let (mut child, ready) = start(&config);
        let addresses =
            std::fs::read_to_string(folder.path().join("state/addresses.json")).unwrap();
        let addresses: serde_json::Value = serde_json::from_str(&addresses).unwrap();
        assert!(
            ready.contains(&format!("ready api={}", addresses["api"].as_str().unwrap())),
            "{ready}"
        );
        signal(&child, if round < 2 { "-KILL" } else { "-TERM" });
        let ended = child.wait().unwrap();
        assert_eq!(ended.code(), if round < 2 { None } else { Some(0) });
    }
}

#[test]
fn a_used_port_a_locked_store_and_a_missing_state_have_different_errors() {
    let folder = tempfile::tempdir().unwrap();
    ended(
        &serve(&config(folder.path(), "127.0.0.1:0")),
        64,
        "casemate-control init",
    );
    init(&folder.path().join("state"));
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    ended(&serve(&config(folder.path(), &address)), 69, &address);
    let config = config(folder.path(), "127.0.0.1:0");
    let (mut first, _) = start(&config);
    ended(&serve(&config), 75, "locked");
    signal(&first, "-TERM");
    assert!(first.wait().unwrap().success());
    std::fs::write(folder.path().join("state/store.redb"), "overwritten").unwrap();
    ended(&serve(&config), 74, "damaged");
}

#[test]
fn all_mistakes_of_a_configuration_are_reported() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("control.toml");
    std::fs::write(&path, "api = \"x\"\nquick = \"y\"\n").unwrap();
    let output = serve(&path);
    ended(&output, 64, "control.toml:2: unknown key `quick`");
    ended(&output, 64, "control.toml:1: `api`: expected an address");
    ended(&output, 64, "`state` is missing");
    ended(&serve(&folder.path().join("none.toml")), 64, "none.toml");
    ended(&program().arg("sevre").output().unwrap(), 64, "sevre");
}

#[tokio::test]
async fn acknowledged_changes_survive_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    init(&state);
    let config = config(folder.path(), "127.0.0.1:0");
    let operator = std::fs::read_to_string(state.join("operator.token")).unwrap();
    let public = std::fs::read(state.join("public.json")).unwrap();
    let public: PublicKeys = serde_json::from_slice(&public).unwrap();
    let acknowledged = Arc::new(Mutex::new(BTreeSet::new()));
    for round in 0..6 {
        let (mut child, _) = start(&config);
        let addresses = std::fs::read(state.join("addresses.json")).unwrap();
        let addresses: serde_json::Value = serde_json::from_slice(&addresses).unwrap();
        let client =
            support::Client::new(addresses["api"].as_str().unwrap(), public.api, &operator);
        let listed: TokenList = client.get("/v1/tokens").await.ok().json();
        let listed: BTreeSet<_> = listed.tokens.into_iter().map(|token| token.id).collect();
        let audit: AuditPage = client.get("/v1/audit").await.ok().json();
        assert!(audit.verified, "round {round}");
        assert!(listed.is_superset(&acknowledged.lock()), "round {round}");
        let writing = Arc::clone(&acknowledged);
        let writer = tokio::spawn(async move {
            for _ in 0..200 {
                let new = NewToken {
                    scope: Scope::ReadOnly,
                    label: "t".into(),
                    expires: None,
                };
                let made: MadeToken = client.post("/v1/tokens", &new).await.ok().json();
                writing.lock().insert(made.id);
            }
        });
        tokio::time::sleep(Duration::from_millis(40 + 37 * round)).await;
        signal(&child, "-KILL");
        child.wait().unwrap();
        // The program was most likely in the middle of a change.
        writer.await.ok();
    }
    assert!(acknowledged.lock().len() > 6, "too slow to prove anything");
}
