//! State folders and backups of earlier programs: this control plane shows, serves and continues
//! their content.
// A panic is how a test fails.
#![allow(clippy::unwrap_used)]

#[path = "../../../tests/fixtures/archive.rs"]
mod archive;
mod support;

use std::path::{Path, PathBuf};

use casemate_api::audit::{AuditPage, AuditRecord};
use casemate_control::{Failure, Progress};
use casemate_control_store::{Change, Redb, Store as _, StoreId};
use casemate_push::{NodeEnd, StatementId};
use casemate_trust::id::Digest;
use casemate_trust::revocation::Revocations;
use casemate_trust::statement::Statement as _;
use serde_json::{Value, json};
use support::fleet::{key, tenant_path};
use support::node::{hello, joining, member};
use support::{Control, Fleet, Node};

/// Every format that a state folder has had, and every one of a backup.
const STATES: [&str; 1] = ["control-1"];
const BACKUPS: [&str; 1] = ["backup-1"];
/// Files that every control plane makes again or that are large; and the file with the addresses of
/// the last one.
const LEFT_OUT: [&str; 2] = ["state/reserve", "state/addresses.json"];
/// The file with the tenant's token, beside the state folder.
const TENANT_TOKEN: &str = "tenant.token";
const OPERATOR_TOKEN: &str = "operator.token";
/// Audit records that are compared: later programs may add more at their start.
const AUDIT_RECORDS: usize = 10;

/// A stopped control plane that holds an object of each kind; and a backup of it.
async fn write() {
    let mut control = Control::new().await;
    let fleet = Fleet::new(&control).await;
    let client = control.client(&fleet.tenant_token);
    let operator = control.operator();
    fleet.deploy(&client, 1, b"bundle one").await;
    fleet.deploy(&client, 2, b"bundle two").await;
    let revocations = Revocations {
        fleet: fleet.id,
        version: 4,
        nodes: vec![key(66).public()],
        exposed: [].into(),
        issued: 1,
    };
    let revocations = revocations.sign(&[&key(1)]).to_bytes();
    operator
        .ask("POST", "/v1/statements", revocations)
        .await
        .ok();
    let mut node = member(&control, &fleet, "edge-1", &key(20)).await;
    node.sync().await;
    let token = fleet
        .join_token(&control, "edge-2", support::fleet::LATER)
        .await;
    let mut waiting = joining(&control, &fleet, &token, &key(22)).await;
    waiting.next().await.unwrap();
    drop((node, waiting));
    support::eventually("the node is gone", async || {
        let nodes: Value = operator.get("/v1/nodes").await.ok().json();
        nodes["nodes"][0]["connected_since"].is_null()
    })
    .await;
    control.stop().await;
    let folder = control.folder.path();
    std::fs::write(folder.join(TENANT_TOKEN), &fleet.tenant_token).unwrap();
    let backup = tempfile::tempdir().unwrap();
    let (state, to) = (control.state(), backup.path().join("backup"));
    let work = move || casemate_control::backup(&state, &to, &mut |_: Progress| ());
    tokio::task::spawn_blocking(work).await.unwrap().unwrap();
    for name in [TENANT_TOKEN, OPERATOR_TOKEN] {
        let from = if name == TENANT_TOKEN { "" } else { "state" };
        std::fs::copy(folder.join(from).join(name), backup.path().join(name)).unwrap();
    }
    archive::pack(STATES[STATES.len() - 1], folder, &LEFT_OUT);
    archive::pack(BACKUPS[BACKUPS.len() - 1], backup.path(), &[]);
}

fn token(folder: &Path, name: &str) -> String {
    std::fs::read_to_string(folder.join(name)).unwrap()
}

/// Everything that the API shows with all rights, without data of this run.
async fn shown(control: &Control, fleet: &Fleet) -> Value {
    let operator = control.operator();
    let mut shown = serde_json::Map::new();
    let tenant = format!("/v1/tenants/{}", fleet.tenant.id);
    let status = tenant_path(&fleet.tenant.id, "status");
    let paths = [
        "/v1/fleet",
        "/v1/pools",
        "/v1/tenants",
        &tenant,
        &status,
        "/v1/nodes",
        "/v1/nodes/edge-1",
        "/v1/nodes/joins",
        "/v1/tokens",
    ];
    for path in paths {
        let mut answer: Value = operator.get(path).await.ok().json();
        if path == "/v1/fleet" {
            answer["version"].take();
            answer["quic_address"].take();
        }
        // An unlisted object is removed at some time.
        if path == status {
            answer["storage"].take();
        }
        shown.insert(path.to_owned(), answer);
    }
    let page: AuditPage = operator.get("/v1/audit").await.ok().json();
    AuditRecord::verify(None, &page.records).unwrap();
    assert!(page.verified);
    let records = &page.records[..AUDIT_RECORDS];
    shown.insert("audit".into(), serde_json::to_value(records).unwrap());
    Value::Object(shown)
}

/// Everything that an empty node is sent.
async fn sent(control: &Control, fleet: &Fleet) -> (Node, Value) {
    let end = NodeEnd::member(hello("edge-1", &key(20), fleet.id));
    let mut node = Node::connect(control, &key(20), end).await;
    let came = node.sync().await;
    let statements = came.statements.iter();
    let statements = statements.map(|(id, bytes)| (id.to_string(), Digest::of(bytes)));
    let objects: Vec<_> = came.objects.keys().collect();
    let sent = json!({ "statements": statements.collect::<Vec<_>>(), "objects": objects });
    (node, sent)
}

/// Compares a control plane on an earlier program's state with the recorded answers, and makes
/// changes.
async fn same_as_written_and_goes_on(name: &str, folder: tempfile::TempDir) {
    let tenant_token = token(folder.path(), TENANT_TOKEN);
    let mut control = Control::of_earlier(folder).await;
    let fleet = Fleet::of_earlier(tenant_token);
    let mut found = shown(&control, &fleet).await;
    let (mut node, sent) = sent(&control, &fleet).await;
    found["sent"] = sent;
    archive::same_as_written(name, &found);
    assert_eq!(
        node.fetch(Digest::of(b"bundle two"), 0).await,
        b"bundle two"
    );

    let client = control.client(&fleet.tenant_token);
    let path = tenant_path(&fleet.tenant.id, "manifest");
    let lower = fleet.manifest(1, b"", None).sign(&[&key(10)]).to_bytes();
    let refused = client.put(&path, lower).await;
    assert_eq!(refused.refused(409), "manifest_conflict");
    fleet.deploy(&client, 3, b"bundle three").await;
    let tenant = fleet.tenant.id;
    let third = StatementId::Manifest { tenant, version: 3 };
    assert!(node.sync().await.ids().contains(&third));
    control.stop().await;
    control.start().await;
    let view: Value = control.operator().get("/v1/tenants").await.ok().json();
    assert_eq!(view["tenants"][0]["manifest_version"], 3, "{view}");
}

#[tokio::test(flavor = "multi_thread")]
async fn state_folders_of_earlier_programs_are_served() {
    if archive::is_wanted(STATES[STATES.len() - 1]) {
        write().await;
    }
    for name in STATES {
        let folder = archive::unpack(name);
        let operator = folder.path().join("state").join(OPERATOR_TOKEN);
        std::fs::copy(operator, folder.path().join(OPERATOR_TOKEN)).unwrap();
        same_as_written_and_goes_on(name, folder).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn backups_of_earlier_programs_are_restored() {
    for name in BACKUPS {
        let folder = archive::unpack(name);
        let (from, state): (PathBuf, _) =
            (folder.path().join("backup"), folder.path().join("state"));
        let work = move || casemate_control::restore(&from, &state, &mut |_: Progress| ());
        let restored = tokio::task::spawn_blocking(work).await.unwrap().unwrap();
        assert!(restored.audit_intact && restored.missing_bundles.is_empty());
        same_as_written_and_goes_on(name, folder).await;
    }
}

async fn on_a_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

/// Why a control plane does not start on this state folder.
async fn refused(state: &Path) -> Failure {
    let served = casemate_control::serve(support::config(state), std::future::pending());
    served.await.unwrap_err()
}

/// Files of a state folder, except those without state.
fn snapshot(state: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = std::fs::read_dir(state).unwrap();
    let files = entries.map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = files
        .filter(|path| path.is_file())
        .map(|path| (path.clone(), std::fs::read(path).unwrap()))
        .collect();
    files.sort();
    files
}

#[tokio::test(flavor = "multi_thread")]
async fn the_state_of_a_newer_control_plane_is_not_changed() {
    let folder = archive::unpack(STATES[STATES.len() - 1]);
    let state = folder.path().join("state");
    let newer = r#"{"format":99,"software":"9.0.0"}"#;
    std::fs::write(state.join("format.json"), newer).unwrap();
    let before = snapshot(&state);
    let no = refused(&state).await;
    assert_eq!(no.code, 65, "{}", no.message);
    for part in [
        "format 99",
        "casemate 9.0.0",
        env!("CARGO_PKG_VERSION"),
        "install",
    ] {
        assert!(no.message.contains(part), "{part}: {}", no.message);
    }
    let (from, to) = (state.clone(), folder.path().join("backup"));
    let no = on_a_thread(move || casemate_control::backup(&from, &to, &mut |_: Progress| ())).await;
    assert_eq!(no.unwrap_err().code, 65);
    assert_eq!(snapshot(&state), before);

    // A backup includes the format file, and a newer format in it is refused too.
    let folder = archive::unpack(BACKUPS[BACKUPS.len() - 1]);
    std::fs::write(folder.path().join("backup/format.json"), newer).unwrap();
    let (from, to) = (folder.path().join("backup"), folder.path().join("state"));
    let made = to.clone();
    let no =
        on_a_thread(move || casemate_control::restore(&from, &to, &mut |_: Progress| ())).await;
    assert_eq!(no.unwrap_err().code, 65);
    assert!(!made.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_that_only_a_newer_control_plane_reads_is_not_forgotten() {
    let folder = archive::unpack(STATES[STATES.len() - 1]);
    let state = folder.path().join("state");
    let manifest = Fleet::of_earlier(String::new()).manifest(9, b"", None);
    let mut manifest = serde_json::to_value(manifest).unwrap();
    manifest["of_a_later_version"] = json!(true);
    let payload = serde_json::to_vec(&manifest).unwrap();
    let kind = casemate_trust::statement::Manifest::TYPE;
    let envelope = casemate_trust::dsse::Envelope::sign(kind, payload, &[&key(10)]);
    let row = format!("manifest/{}", Fleet::of_earlier(String::new()).tenant.id);
    let store = Redb::open(&state.join("store.redb"), StoreId([0; 16])).unwrap();
    let change = Change::put(&row, envelope.to_bytes());
    store.commit(vec![], vec![change]).await.unwrap();
    drop(store);
    let no = refused(&state).await;
    assert_eq!(no.code, 65, "{}", no.message);
    for part in [row.as_str(), "of_a_later_version", "newer control plane"] {
        assert!(no.message.contains(part), "{part}: {}", no.message);
    }
}
