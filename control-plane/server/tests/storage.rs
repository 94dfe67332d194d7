//! A tenant's storage: its limit, and the removal of items that nothing lists.
// A panic is how a test fails.
#![allow(clippy::unwrap_used)]

#[path = "storage/full_disk.rs"]
mod full_disk;
mod support;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use casemate_api::audit::AuditPage;
use casemate_api::tenant::TenantStatus;
use casemate_api::token::{Scope, TokenList};
use casemate_control_store::{Change, Redb, Store as _, StoreId};
use casemate_push::{NodeEnd, NodeEvent};
use casemate_trust::id::{Digest, TenantId};
use casemate_trust::release::Var;
use casemate_trust::statement::{Statement as _, Tenant};
use serde_json::{Value, json};
use support::fleet::{LATER, key, tenant, tenant_path, token};
use support::node::hello;
use support::{Client, Control, Fleet, Node, eventually};

/// Older than any item that a manifest may be about to list.
const LONG_AGO: Duration = Duration::from_secs(2 * 60 * 60);
/// Young enough to stay now, too old to be certain to stay until a manifest arrives.
const A_WHILE_AGO: Duration = Duration::from_secs(45 * 60);

fn bundle_path(bundle: &[u8]) -> String {
    format!("/v1/bundles/{}", Digest::of(bundle))
}

/// The path of a bundle.
fn file(control: &Control, tenant: &TenantId, bundle: &[u8]) -> PathBuf {
    let digest = Digest::of(bundle).to_string();
    let folder = control.state().join("bundles").join(tenant.to_string());
    folder.join(digest)
}

async fn used_bytes(client: &Client, tenant: &TenantId) -> u64 {
    let status = client.get(&tenant_path(tenant, "status")).await.ok();
    status.json::<TenantStatus>().storage.used_bytes
}

fn open(control: &Control) -> Redb {
    Redb::open(&control.state().join("store.redb"), StoreId([0; 16])).unwrap()
}

/// Makes all uploads appear this much older; the control plane does not run.
async fn age(control: &Control, by: Duration) {
    let then = SystemTime::now() - by;
    for folder in std::fs::read_dir(control.state().join("bundles")).unwrap() {
        for bundle in std::fs::read_dir(folder.unwrap().path()).unwrap() {
            let bundle = File::open(bundle.unwrap().path()).unwrap();
            bundle.set_modified(then).unwrap();
        }
    }
    let store = open(control);
    let since = then.duration_since(UNIX_EPOCH).unwrap().as_secs();
    for entry in store.range("kept/", None, 1000).await.unwrap() {
        let mut kept: Value = serde_json::from_slice(&entry.value).unwrap();
        kept["since"] = since.into();
        let change = Change::put(entry.key, kept.to_string());
        store.commit(vec![], vec![change]).await.unwrap();
    }
}

async fn restart_after(control: &mut Control, by: Duration) {
    control.stop().await;
    age(control, by).await;
    control.start().await;
}

async fn removals(control: &Control) -> Vec<String> {
    let page: AuditPage = control.operator().get("/v1/audit").await.ok().json();
    assert!(page.verified);
    let removals = page.records.into_iter();
    removals
        .filter(|record| record.action == "storage.remove")
        .map(|record| record.subject)
        .collect()
}

/// Another tenant of the fleet, with its token.
async fn second_tenant(control: &Control, fleet: &Fleet) -> (Tenant, Client) {
    let bank = tenant(fleet.id, "bank", 11);
    let signed = bank.sign(&[&key(1)]).to_bytes();
    let operator = control.operator();
    operator.ask("POST", "/v1/statements", signed).await.ok();
    let token = token(&operator, Scope::Tenant(bank.id)).await;
    (bank, control.client(&token))
}

#[tokio::test]
async fn a_full_storage_refuses_new_items_and_names_the_next_step() {
    let mut control = Control::new().await;
    let fleet = Fleet::new(&control).await;
    control.stop().await;
    control.tenant_storage_mib = 1;
    control.start().await;
    let client = control.client(&fleet.tenant_token);
    let id = fleet.tenant.id;
    let (first, second) = (vec![1; 700_000], vec![2; 700_000]);
    client.put(&bundle_path(&first), first.clone()).await.ok();
    let refused = client.put(&bundle_path(&second), second.clone()).await;
    assert_eq!(refused.refused(413), "quota_exceeded");
    assert_eq!(
        refused.details(),
        json!({ "used_bytes": 700_000, "asked_bytes": 700_000, "limit_bytes": 1 << 20 })
    );
    let text = String::from_utf8(refused.body).unwrap();
    assert!(text.contains("casemate prune FUNCTION"), "{text}");
    // The largest body is read to its end, so that its sender reads the answer.
    let largest = vec![3; 10 * 1024 * 1024];
    let refused = client.put(&bundle_path(&largest), largest).await;
    assert_eq!(refused.refused(413), "quota_exceeded");
    let at = bundle_path(&second);
    assert_eq!(client.ask("HEAD", &at, vec![]).await.status, 404);
    // An existing bundle may be uploaded again, and one that is refused for another reason takes no
    // space.
    client.put(&bundle_path(&first), first.clone()).await.ok();
    let wrong = client.put(&bundle_path(b"other"), vec![4; 200_000]).await;
    assert_eq!(wrong.refused(422), "digest_mismatch");
    assert_eq!(used_bytes(&client, &id).await, 700_000);
    // Objects count too, and the sum survives a restart.
    let third = vec![5; 300_000];
    client.put(&bundle_path(&third), third).await.ok();
    let release = |letter: &str| {
        let mut release = fleet.release(&fleet.tenant, &first);
        let (name, value) = ("A".parse().unwrap(), letter.repeat(30_000));
        release.vars = vec![Var { name, value }];
        let bytes = release.to_bytes();
        let path = tenant_path(&id, &format!("objects/{}", Digest::of(&bytes)));
        (path, bytes)
    };
    let ((fits, bytes), (over, more)) = (release("x"), release("y"));
    client.put(&fits, bytes.clone()).await.ok();
    control.stop().await;
    control.start().await;
    let client = control.client(&fleet.tenant_token);
    let used = 1_000_000 + bytes.len() as u64;
    assert_eq!(used_bytes(&client, &id).await, used);
    let refused = client.put(&over, more).await;
    assert_eq!(refused.refused(413), "quota_exceeded");
    assert_eq!(client.get(&over).await.status, 404);
    // Other tenants are not affected.
    let (bank, client) = second_tenant(&control, &fleet).await;
    client.put(&bundle_path(&second), second).await.ok();
    assert_eq!(used_bytes(&client, &bank.id).await, 700_000);
}

#[tokio::test]
async fn unlisted_items_are_removed_when_they_are_old() {
    let mut control = Control::new().await;
    let fleet = Fleet::new(&control).await;
    let client = control.client(&fleet.tenant_token);
    let id = fleet.tenant.id;
    fleet.deploy(&client, 1, b"bundle one").await;
    let one = used_bytes(&client, &id).await;
    fleet.deploy(&client, 2, b"bundle two").await;
    assert!(used_bytes(&client, &id).await > one, "young: all stays");
    // Another tenant lists the same bundle as the first manifest did.
    let (bank, bank_client) = second_tenant(&control, &fleet).await;
    let release = fleet.release(&bank, b"bundle one").to_bytes();
    let at = tenant_path(&bank.id, &format!("objects/{}", Digest::of(&release)));
    bank_client.put(&at, release.clone()).await.ok();
    let one_at = bundle_path(b"bundle one");
    assert_eq!(bank_client.ask("HEAD", &one_at, vec![]).await.status, 404);
    bank_client.put(&one_at, b"bundle one".to_vec()).await.ok();
    let mut manifest = fleet.manifest(1, &release, None);
    manifest.tenant = bank.id;
    let manifest = manifest.sign(&[&key(11)]).to_bytes();
    let at = tenant_path(&bank.id, "manifest");
    bank_client.put(&at, manifest).await.ok();
    let banks = used_bytes(&bank_client, &bank.id).await;

    restart_after(&mut control, LONG_AGO).await;
    let gone = file(&control, &id, b"bundle one");
    eventually("the removal", async || !gone.exists()).await;
    let client = control.client(&fleet.tenant_token);
    eventually("the room", async || used_bytes(&client, &id).await == one).await;
    // One bundle, its release, and the secret that was sealed anew since.
    let removals = removals(&control).await;
    assert_eq!(removals.len(), 1, "{removals:?}");
    assert!(
        removals[0].starts_with(&format!("tenant {id}: 1 bundles and 2 objects, ")),
        "{removals:?}"
    );
    let old = fleet.release(&fleet.tenant, b"bundle one").to_bytes();
    let at = tenant_path(&id, &format!("objects/{}", Digest::of(&old)));
    assert_eq!(client.get(&at).await.status, 404);
    let new = fleet.release(&fleet.tenant, b"bundle two").to_bytes();
    let at = tenant_path(&id, &format!("objects/{}", Digest::of(&new)));
    assert_eq!(client.get(&at).await.ok().body, new);
    let two_at = bundle_path(b"bundle two");
    assert_eq!(client.ask("HEAD", &two_at, vec![]).await.status, 200);
    assert!(file(&control, &bank.id, b"bundle one").exists());

    // With a manifest, the items that it drops are removed at once, if they are old.
    fleet.deploy(&client, 3, b"bundle three").await;
    let gone = file(&control, &id, b"bundle two");
    eventually("the removal", async || !gone.exists()).await;
    assert!(file(&control, &id, b"bundle three").exists());
    let bank_client = second_tenant(&control, &fleet).await.1;
    assert_eq!(used_bytes(&bank_client, &bank.id).await, banks);

    // A node gets the remaining bundles, of both tenants.
    let token = fleet.join_token(&control, "edge-1", LATER).await;
    let request = fleet.join_request(&token, &key(20)).to_bytes();
    let mut node = Node::connect(&control, &key(20), NodeEnd::joining(request)).await;
    assert_eq!(node.next().await.unwrap(), NodeEvent::JoinPending);
    let joins: casemate_api::node::JoinList =
        control.operator().get("/v1/nodes/joins").await.ok().json();
    let join = joins.joins.into_iter().next().unwrap();
    let admission = casemate_api::node::Admission {
        request: join.request,
        node_key: join.node_key,
        name: join.node,
        pool: join.pool,
        grants: vec![fleet.grant(&key(20))],
    };
    let operator = control.operator();
    operator.post("/v1/nodes/admit", &admission).await.ok();
    assert_eq!(node.next().await.unwrap(), NodeEvent::Admitted);
    node.end.hello(hello("edge-1", &key(20), fleet.id)).unwrap();
    assert_eq!(node.sync().await.objects.len(), 3);
    for bundle in [&b"bundle one"[..], b"bundle three"] {
        assert_eq!(node.fetch(Digest::of(bundle), 0).await, bundle);
    }
}

#[tokio::test]
async fn an_upload_that_may_expire_before_its_manifest_is_requested_again() {
    let mut control = Control::new().await;
    let fleet = Fleet::new(&control).await;
    let id = fleet.tenant.id;
    let client = control.client(&fleet.tenant_token);
    let at = bundle_path(b"bundle one");
    let release = fleet.release(&fleet.tenant, b"bundle one").to_bytes();
    let object = tenant_path(&id, &format!("objects/{}", Digest::of(&release)));
    client.put(&at, b"bundle one".to_vec()).await.ok();
    client.put(&object, release.clone()).await.ok();
    restart_after(&mut control, A_WHILE_AGO).await;
    let client = control.client(&fleet.tenant_token);
    assert!(file(&control, &id, b"bundle one").exists(), "still there");
    assert_eq!(client.ask("HEAD", &at, vec![]).await.status, 404);
    let before = used_bytes(&client, &id).await;
    client.put(&at, b"bundle one".to_vec()).await.ok();
    client.put(&object, release.clone()).await.ok();
    assert_eq!(client.ask("HEAD", &at, vec![]).await.status, 200);
    assert_eq!(used_bytes(&client, &id).await, before, "counted once");
    // Both count as new now.
    restart_after(&mut control, Duration::ZERO).await;
    control.stop().await;
    let store = open(&control);
    let kept = store.range("kept/", None, 10).await.unwrap();
    let kept: Value = serde_json::from_slice(&kept[0].value).unwrap();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    assert!(now.as_secs() - kept["since"].as_u64().unwrap() < 60);
}

#[tokio::test]
async fn nothing_is_removed_if_a_manifest_cannot_be_read() {
    let mut control = Control::new().await;
    let fleet = Fleet::new(&control).await;
    let id = fleet.tenant.id;
    let client = control.client(&fleet.tenant_token);
    fleet.deploy(&client, 1, b"bundle one").await;
    let (bank, client) = second_tenant(&control, &fleet).await;
    client
        .put(&bundle_path(b"unlisted"), b"unlisted".to_vec())
        .await
        .ok();
    control.stop().await;
    age(&control, LONG_AGO).await;
    {
        let damage = Change::put(format!("manifest/{id}"), b"{".to_vec());
        open(&control).commit(vec![], vec![damage]).await.unwrap();
    }
    control.start().await;
    let gone = file(&control, &bank.id, b"unlisted");
    eventually("the removal", async || !gone.exists()).await;
    // By now every tenant was checked.
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(file(&control, &id, b"bundle one").exists());
    let removals = removals(&control).await;
    assert_eq!(removals.len(), 1, "{removals:?}");
}

/// Writes a configuration for the program.
fn config(control: &Control) -> PathBuf {
    let path = control.folder.path().join("control.toml");
    let text = "state = \"state\"\napi = \"127.0.0.1:0\"\nquic = \"127.0.0.1:0\"\n";
    std::fs::write(&path, text).unwrap();
    path
}

/// The remaining bundles and objects that no manifest lists, and whether every listed one exists.
async fn left(control: &Control, listed: &BTreeSet<String>) -> usize {
    let bundles = std::fs::read_dir(control.state().join("bundles")).unwrap();
    let bundles = bundles.flat_map(|folder| std::fs::read_dir(folder.unwrap().path()).unwrap());
    let mut found: Vec<String> = bundles
        .map(|bundle| bundle.unwrap().file_name().into_string().unwrap())
        .collect();
    let store = open(control);
    for prefix in ["object/", "kept/"] {
        let entries = store.range(prefix, None, 1000).await.unwrap();
        let names = entries
            .iter()
            .filter_map(|entry| entry.key.split('/').nth(2));
        found.extend(names.map(str::to_owned));
    }
    let distinct: BTreeSet<_> = found.iter().cloned().collect();
    let missing: Vec<_> = listed.difference(&distinct).collect();
    assert!(missing.is_empty(), "removed although listed: {missing:?}");
    found.iter().filter(|name| !listed.contains(*name)).count()
}

#[tokio::test]
async fn a_kill_during_a_removal_loses_no_listed_item() {
    let mut control = Control::new().await;
    let fleet = Fleet::new(&control).await;
    let id = fleet.tenant.id;
    fleet
        .deploy(&control.client(&fleet.tenant_token), 1, b"bundle")
        .await;
    control.stop().await;
    let mut listed: BTreeSet<String> = BTreeSet::from([Digest::of(b"bundle").to_string()]);
    listed.extend(unlisted_beside(&control, &id).await);
    age(&control, LONG_AGO).await;
    let config = config(&control);
    let all = left(&control, &listed).await;
    killed_again_and_again(&control, &config, &listed, all).await;
    control.start().await;
    eventually("the end of the removal", async || {
        let client = control.client(&fleet.tenant_token);
        let listed: u64 = [
            b"bundle".len(),
            fleet.release(&fleet.tenant, b"bundle").to_bytes().len(),
            fleet.secret().to_bytes().len(),
        ]
        .iter()
        .sum::<usize>() as u64;
        // A sealed secret's length may vary with how its numbers are written; nothing else is left.
        used_bytes(&client, &id).await <= listed + 64
    })
    .await;
    assert!(!removals(&control).await.is_empty());
    let client = control.client(&fleet.tenant_token);
    let at = bundle_path(b"bundle");
    assert_eq!(client.ask("HEAD", &at, vec![]).await.status, 200);
    control.stop().await;
    assert_eq!(left(&control, &listed).await, 0);
}

/// Adds many unlisted bundles and objects; returns the digests of the listed ones.
async fn unlisted_beside(control: &Control, id: &TenantId) -> Vec<String> {
    let store = open(control);
    let kept = store.range("kept/", None, 1000).await.unwrap();
    let kept: Vec<String> = kept
        .iter()
        .filter_map(|entry| Some(entry.key.split('/').nth(2)?.to_owned()))
        .collect();
    let all: BTreeSet<_> = kept
        .iter()
        .cloned()
        .chain([Digest::of(b"bundle").to_string()])
        .collect();
    assert_eq!(all.len(), 3, "a bundle, a release, a secret");
    for number in 0..400_u32 {
        let bytes = number.to_be_bytes();
        std::fs::write(file(control, id, &bytes), bytes).unwrap();
        let digest = Digest::of(&bytes);
        let changes = vec![
            Change::put(
                format!("object/{id}/{digest}"),
                [&b"r"[..], &bytes].concat(),
            ),
            Change::put(format!("kept/{id}/{digest}"), r#"{"bytes":4,"since":1}"#),
        ];
        if number % 4 == 0 {
            store.commit(vec![], changes).await.unwrap();
        }
    }
    kept
}

/// Starts the program and kills it a little later each time, until nothing is left to remove.
async fn killed_again_and_again(
    control: &Control,
    config: &Path,
    listed: &BTreeSet<String>,
    all: usize,
) {
    let (mut before, mut cut) = (all, 0);
    for round in 0..60_u64 {
        let mut program = Command::new(env!("CARGO_BIN_EXE_casemate-control"))
            .args(["serve", "--config"])
            .arg(config)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(program.stderr.take().unwrap()).lines();
        let ready = lines.any(|line| line.unwrap().contains("ready api="));
        assert!(ready, "it starts after a kill");
        std::thread::sleep(Duration::from_millis(5 * round));
        program.kill().unwrap();
        program.wait().unwrap();
        let now = left(control, listed).await;
        assert!(now <= before);
        cut += u32::from(now > 0 && now < before);
        before = now;
        if now == 0 {
            break;
        }
    }
    assert!(
        before < all && cut > 0,
        "no kill came in the middle: {before}"
    );
}
