//! Backups of a running control plane, and their restore.
// A panic is how a test fails.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::{Path, PathBuf};

use casemate_api::audit::{AuditPage, AuditRecord};
use casemate_api::fleet::FleetView;
use casemate_api::node::{NodeList, NodeView, Readmission};
use casemate_control::{BackupOutcome, Failure, Progress};
use casemate_control_store::{Redb, Store as _, StoreId};
use casemate_push::NodeEnd;
use casemate_trust::id::Digest;
use casemate_trust::join::JoinRequest;
use casemate_trust::statement::Statement as _;
use support::fleet::{key, tenant_path};
use support::node::{hello, member};
use support::{Control, Fleet, Node};

/// Makes a backup like the program does, outside of the runtime.
async fn backup(state: PathBuf, to: PathBuf) -> Result<BackupOutcome, Failure> {
    let work = move || casemate_control::backup(&state, &to, &mut |_: Progress| ());
    tokio::task::spawn_blocking(work).await.unwrap()
}

async fn restore(from: PathBuf, state: PathBuf) -> Result<BackupOutcome, Failure> {
    let work = move || casemate_control::restore(&from, &state, &mut |_: Progress| ());
    tokio::task::spawn_blocking(work).await.unwrap()
}

/// Moves the state folder away and the restored one into its place.
async fn restore_over(control: &mut Control, from: &Path) -> BackupOutcome {
    control.stop().await;
    let state = control.state();
    let aside = state.with_file_name(format!(
        "aside-{}",
        Digest::of(from.as_os_str().as_encoded_bytes())
    ));
    std::fs::rename(&state, aside).unwrap();
    let outcome = restore(from.to_owned(), state).await.unwrap();
    control.start().await;
    outcome
}

fn id(store: &Path) -> StoreId {
    Redb::open(store, StoreId([0; 16])).unwrap().id()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_during_deployments_can_be_restored() {
    let mut control = Control::new().await;
    let fleet = Fleet::new(&control).await;
    let client = control.client(&fleet.tenant_token);
    fleet.deploy(&client, 1, b"bundle one").await;
    let to = control.folder.path().join("backups/monday");
    // During deployments: the copy has the state after some of them.
    let (writing, made) = tokio::join!(
        async {
            for version in 2..20 {
                fleet
                    .deploy(&client, version, format!("bundle {version}").as_bytes())
                    .await;
            }
        },
        backup(control.state(), to.clone()),
    );
    let ((), made) = (writing, made.unwrap());
    assert_eq!((made.missing_bundles.len(), made.audit_intact), (0, true));
    assert!(to.join("keys/quic.key").exists() && !to.join("operator.token").exists());
    let again = backup(control.state(), to.clone()).await.unwrap_err();
    assert_eq!(again.code, 73, "{}", again.message);
    let left = std::fs::read_dir(to.parent().unwrap()).unwrap().count();
    assert_eq!(left, 1, "nothing is left behind");
    let original = id(&to.join("store.redb"));
    // The backup is older than this deployment.
    fleet.deploy(&client, 30, b"bundle of today").await;
    let restored = restore_over(&mut control, &to).await;
    assert_eq!(restored.backup, made.backup);
    let client = control.client(&fleet.tenant_token);
    let status = client
        .get(&tenant_path(&fleet.tenant.id, "status"))
        .await
        .ok();
    let version = status.json::<serde_json::Value>()["manifest_version"].as_u64();
    assert!(version.is_some_and(|version| version < 30), "{version:?}");
    // The control plane is the same with another store: same keys, and an unbroken chain with the
    // restore in it.
    let fleet_view: FleetView = client.get("/v1/fleet").await.ok().json();
    assert_eq!(fleet_view.fleet, Some(fleet.id));
    let page: AuditPage = control.operator().get("/v1/audit").await.ok().json();
    AuditRecord::verify(None, &page.records).unwrap();
    let last = page.records.last().unwrap();
    assert_eq!(
        (last.action.as_str(), last.actor.as_str()),
        ("store.restore", "casemate-control")
    );
    fleet.deploy(&client, 31, b"bundle of tomorrow").await;
    let nodes: NodeList = control.operator().get("/v1/nodes").await.ok().json();
    assert!(nodes.nodes.is_empty());
    control.stop().await;
    assert_ne!(id(&control.state().join("store.redb")), original);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_a_restore_has_lost_is_registered_again_and_served() {
    let mut control = Control::new().await;
    let fleet = Fleet::new(&control).await;
    let client = control.client(&fleet.tenant_token);
    fleet.deploy(&client, 1, b"bundle one").await;
    let to = control.folder.path().join("backup");
    backup(control.state(), to.clone()).await.unwrap();
    let node = member(&control, &fleet, "edge-1", &key(20)).await;
    let path = "/v1/nodes/edge-1";
    let view: NodeView = control.operator().get(path).await.ok().json();
    drop(node);
    restore_over(&mut control, &to).await;
    let operator = control.operator();
    assert_eq!(operator.get(path).await.refused(404), "not_found");
    let readmission = |signed| Readmission {
        join: signed,
        grants: vec![fleet.grant(&key(20))],
    };
    let forged = JoinRequest::read(&view.join).unwrap().sign(&[&key(21)]);
    let forged = operator.post("/v1/nodes", &readmission(forged)).await;
    assert_eq!(forged.refused(422), "join_signature");
    let whole = readmission(view.join.clone());
    let tenant = control.client(&fleet.tenant_token);
    assert_eq!(
        tenant.post("/v1/nodes", &whole).await.refused(403),
        "forbidden"
    );
    operator.post("/v1/nodes", &whole).await.ok();
    assert_eq!(
        operator.post("/v1/nodes", &whole).await.refused(409),
        "node_exists"
    );
    // The node is a member and receives everything, whatever it holds of the lost store.
    let end = NodeEnd::member(hello("edge-1", &key(20), fleet.id));
    let mut node = Node::connect(&control, &key(20), end).await;
    let came = node.sync().await;
    assert_eq!(
        came.ids().len(),
        6,
        "root, online key, pool, grant, tenant and manifest"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_removed_during_a_backup_and_the_control_plane_can_stop() {
    use std::io::{Read as _, Write as _};
    let mut control = Control::new().await;
    Fleet::new(&control).await;
    // A program that requests the store and then does nothing.
    let mut socket =
        std::os::unix::net::UnixStream::connect(control.state().join("control.sock")).unwrap();
    socket.write_all(b"casemate backup 1\n").unwrap();
    assert_eq!(socket.read(&mut [0; 16]).unwrap(), 16);
    control.stop().await;
    assert!(!control.state().join("control.sock").exists());
    // A program that requests another operation is refused, and the next is served.
    control.start().await;
    let path = control.state().join("control.sock");
    let mut stranger = std::os::unix::net::UnixStream::connect(&path).unwrap();
    stranger.write_all(b"casemate backup 9\n").unwrap();
    let mut answer = Vec::new();
    assert!(stranger.read_to_end(&mut answer).is_err() || answer.is_empty());
    let to = control.folder.path().join("backup");
    backup(control.state(), to).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_state_of_a_stopped_control_plane_is_read_from_its_folder() {
    let mut control = Control::new().await;
    let fleet = Fleet::new(&control).await;
    fleet
        .deploy(&control.client(&fleet.tenant_token), 1, b"bundle one")
        .await;
    control.stop().await;
    let to = control.folder.path().join("backup");
    let made = backup(control.state(), to.clone()).await.unwrap();
    assert_eq!(made.backup.bundles, 1);
    // A damaged bundle is left out and named; the rest is good.
    let tenant = fleet.tenant.id.to_string();
    let bundle = control.state().join("bundles").join(&tenant);
    let bundle = bundle.join(Digest::of(b"bundle one").to_string());
    std::fs::write(&bundle, b"bundle 0ne").unwrap();
    let rotten = control.folder.path().join("rotten");
    let made = backup(control.state(), rotten.clone()).await.unwrap();
    let named = format!("{tenant}/{}", Digest::of(b"bundle one"));
    assert_eq!(made.missing_bundles, [named]);
    // A folder that is not a backup, is damaged, or is of a later version is refused, and nothing
    // is left behind.
    let state = control.folder.path().join("restored");
    let no = restore(control.state(), state.clone()).await.unwrap_err();
    assert!(
        no.code == 64 && no.message.contains("is not a backup"),
        "{}",
        no.message
    );
    let label = std::fs::read_to_string(to.join("backup.json")).unwrap();
    std::fs::write(
        to.join("backup.json"),
        label.replace("\"format\": 1", "\"format\": 2"),
    )
    .unwrap();
    let no = restore(to.clone(), state.clone()).await.unwrap_err();
    assert!(
        no.code == 65 && no.message.contains("has format 2, written by casemate"),
        "{}",
        no.message
    );
    std::fs::write(to.join("backup.json"), &label).unwrap();
    let store = std::fs::read(to.join("store.redb")).unwrap();
    std::fs::write(to.join("store.redb"), &store[..store.len() / 3]).unwrap();
    let no = restore(to.clone(), state.clone()).await.unwrap_err();
    assert!(
        no.code == 74 && no.message.contains("damaged"),
        "{}",
        no.message
    );
    std::fs::write(to.join("store.redb"), store).unwrap();
    restore(to.clone(), state.clone()).await.unwrap();
    let no = restore(to, state).await.unwrap_err();
    assert_eq!(no.code, 73, "{}", no.message);
    let entries = std::fs::read_dir(control.folder.path()).unwrap();
    let hidden = entries.filter(|entry| {
        let name = entry.as_ref().unwrap().file_name();
        name.to_string_lossy().starts_with('.')
    });
    assert_eq!(hidden.count(), 0);
}
