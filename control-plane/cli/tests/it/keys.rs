//! The table of the operator's guide about lost and stolen keys: a test follows the steps of each
//! row.

use std::path::Path;

use casemate_trust::dsse::Envelope;
use casemate_trust::key::PublicKey;
use casemate_trust::statement::{Manifest, OnlineKey, Pool, Root, Statement as _, Tenant};
use serde_json::json;

use super::fake::Given;
use super::fleet::ask;
use super::world::{Person, World, world};

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// A copy of a home, such as a thief or an escrow has.
fn copied(person: &Person, dir: &Path, name: &str) -> Person {
    let copy_of = Person::new(dir, name);
    copy(&person.home, &copy_of.home);
    copy_of
}

/// The key that the newest root names.
fn root_key(given: &Given) -> PublicKey {
    Root::read(given.roots.last().unwrap()).unwrap().keys[0]
}

fn newest_tenant(given: &Given) -> (Envelope, Tenant) {
    let statements = given.tenants.values().next().unwrap();
    let newest = statements.last().unwrap().clone();
    let tenant = Tenant::read(&newest).unwrap();
    (newest, tenant)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stolen_root_is_replaced_and_its_signatures_are_refused() {
    let World {
        fake,
        operator,
        tenant,
        login,
        _dir,
    } = world().await;
    let project = tenant.deploys("web", "web.shop.test", "");
    let thief = copied(&operator, _dir.path(), "thief");
    let before = root_key(&fake.given());
    let rotated = operator.json(&["fleet", "rotate-root"]);
    assert_eq!(
        (&rotated["root"], &rotated["signed_anew"]),
        (&2.into(), &3.into())
    );
    let published = operator.json(&["fleet", "publish"]);
    assert_eq!(
        published["published"], 4,
        "the root and the statements that it has signed again"
    );
    {
        let given = fake.given();
        let now = root_key(&given);
        assert_ne!(now, before);
        let online = given.online.clone().unwrap();
        assert!(OnlineKey::read(&online).is_ok() && online.verify(&[now], 1));
        assert!(given.pools.iter().all(|pool| pool.verify(&[now], 1)));
        assert!(newest_tenant(&given).0.verify(&[now], 1));
    }
    assert_eq!(
        operator.json(&["fleet", "publish"])["published"],
        0,
        "once is enough"
    );
    // Every client follows, with the same fingerprint, also a client that connects only now.
    tenant.json(&["deploy", "--project", &project]);
    let newcomer = Person::new(_dir.path(), "newcomer");
    newcomer.json_with(&["login", &login], "casemate_1");
    operator.json(&["tenant", "hosts", "shop", "--add", "more.test"]);
    // A statement that a tenant signs itself has the root's signature too from the next publication
    // on, for nodes that start afresh.
    tenant.json(&["tenant", "rekey"]);
    let now = root_key(&fake.given());
    assert!(!newest_tenant(&fake.given()).0.verify(&[now], 1));
    assert_eq!(operator.json(&["fleet", "publish"])["published"], 1);
    assert!(newest_tenant(&fake.given()).0.verify(&[now], 1));
    // The thief's statements are refused by every home that has seen the next root, as by every
    // node.
    let bad = thief.run(&["tenant", "hosts", "shop", "--add", "evil.test"]);
    assert_ne!(bad.code, 0, "{}", bad.out);
    let kept = operator.home.join("root.key.earlier-1");
    assert!(kept.exists() && !operator.home.join("root.key.next").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_rotation_continues() {
    let World {
        fake,
        operator,
        _dir,
        ..
    } = world().await;
    let escrow = copied(&operator, _dir.path(), "escrow");
    operator.json(&["fleet", "rotate-root"]);
    // The state after a crash between the signature and the change of files: the statement is
    // stored, both keys exist.
    let (key, next) = (
        operator.home.join("root.key"),
        operator.home.join("root.key.next"),
    );
    std::fs::rename(&key, &next).unwrap();
    std::fs::rename(operator.home.join("root.key.earlier-1"), &key).unwrap();
    let ran = operator.run(&["fleet", "publish"]);
    assert!(
        ran.code == 78 && ran.err.contains("rotate-root"),
        "{}",
        ran.err
    );
    let again = operator.json(&["fleet", "rotate-root"]);
    assert_eq!(again["root"], 2);
    operator.json(&["fleet", "publish"]);
    assert_eq!(fake.given().roots.len(), 2);
    // A lost root can only be restored from the escrow.
    std::fs::remove_file(escrow.home.join("root.key")).unwrap();
    let ran = escrow.run(&["pool", "rotate", "main"]);
    assert_eq!(ran.code, 78, "{}", ran.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_replaces_its_stolen_key_and_the_operator_a_lost_one() {
    let World {
        fake,
        operator,
        tenant,
        login,
        _dir,
    } = world().await;
    tenant.deploys("web", "web.shop.test", "");
    let thief = copied(&tenant, _dir.path(), "thief");
    let before = newest_tenant(&fake.given()).1;
    let rekeyed = tenant.json(&["tenant", "rekey"]);
    assert_eq!(
        (&rekeyed["version"], &rekeyed["threshold"]),
        (&2.into(), &1.into())
    );
    let (signed, now) = newest_tenant(&fake.given());
    assert!(
        signed.verify(&before.current.keys, 1),
        "the earlier key names its successor"
    );
    assert_eq!(rekeyed["keys"], json!(now.current.keys));
    assert_ne!(now.current.keys, before.current.keys);
    tenant.json(&["renew"]);
    let manifest = fake.given().manifests[&now.id].last().cloned().unwrap();
    assert!(Manifest::read(&manifest).is_ok() && manifest.verify(&now.current.keys, 1));
    let stolen = thief.run(&["renew"]);
    assert!(
        stolen.code == 78 && stolen.err.contains("does not sign for the tenant"),
        "{}",
        stolen.err
    );
    assert!(tenant.home.join("tenant.key.earlier-1").exists());

    // The key is lost: the tenant begins a new home, and the operator names its key.
    let anew = Person::new(_dir.path(), "anew");
    let key = anew.json(&["tenant", "key", "--plain-keys"]);
    let key = key["public_key"].as_str().unwrap();
    anew.json_with(&["login", &login], "casemate_1");
    let refused = anew.run(&["renew", "--tenant", "shop"]);
    assert_eq!(refused.code, 78, "{}", refused.err);
    let rekeyed = operator.json(&["tenant", "rekey", "shop", "--key", key]);
    assert_eq!(rekeyed["keys"], json!([key]));
    anew.json(&["renew", "--tenant", "shop"]);
    assert_eq!(tenant.run(&["renew"]).code, 78);
    two_of_three_sign(&anew, _dir.path(), key);
}

/// Two of three keys sign from now on.
fn two_of_three_sign(anew: &Person, dir: &Path, key: &str) {
    let more: Vec<String> = (0..2)
        .map(|number| {
            let other = Person::new(dir, &format!("signer-{number}"));
            let key = other.json(&["tenant", "key", "--plain-keys"]);
            key["public_key"].as_str().unwrap().to_owned()
        })
        .collect();
    let all = [
        "tenant",
        "rekey",
        "--key",
        key,
        "--key",
        &more[0],
        "--key",
        &more[1],
        "--threshold",
        "2",
    ];
    assert_eq!(anew.json(&all)["threshold"], 2);
    let alone = anew.run(&["renew"]);
    assert!(
        alone.code == 78 && alone.err.contains("2 keys must sign"),
        "{}",
        alone.err
    );
    let with = dir.join("signer-0/tenant.key");
    anew.json(&["renew", "--with-key", with.to_str().unwrap()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_key_that_is_lost_or_stolen_is_replaced() {
    let World {
        fake,
        operator,
        tenant,
        _dir,
        ..
    } = world().await;
    std::fs::remove_file(operator.home.join("pools/main.1.key")).unwrap();
    let token = operator.json(&["node", "token", "edge-1"]);
    ask(&fake, token["token"].as_str().unwrap(), 8);
    let ran = operator.run(&["node", "admit", "edge-1"]);
    assert!(
        ran.code == 78 && fake.given().admitted.is_empty(),
        "{}",
        ran.err
    );
    operator.json(&["pool", "rotate", "main"]);
    let ran = operator.run(&["node", "admit", "edge-1"]);
    assert!(
        ran.code == 0 && ran.err.contains("epoch 1, is not in this home"),
        "{}",
        ran.err
    );
    let pools: Vec<u64> = {
        let given = fake.given();
        given
            .pools
            .iter()
            .map(|pool| Pool::read(pool).unwrap().epoch)
            .collect()
    };
    assert_eq!(pools, [1, 2]);
    // The thief of the first key cannot open what the tenant seals now.
    let put = ["secret", "put", "KEY", "--host", "api.test"];
    let put = tokio::task::block_in_place(|| tenant.try_with(&put, "hunter2hunter2hunter2"));
    assert_eq!(put.code, 0, "{}", put.err);
    assert_eq!(tenant.json(&["secret", "list"])[0]["epoch"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_tenant_has_no_host_no_key_and_no_token() {
    let World {
        fake,
        operator,
        tenant,
        _dir,
        ..
    } = world().await;
    tenant.deploys("web", "web.shop.test", "");
    let unconfirmed = operator.run(&["tenant", "remove", "shop"]);
    assert_eq!(unconfirmed.code, 64, "{}", unconfirmed.err);
    fake.given().tenant_token = true;
    let removed = operator.json(&["tenant", "remove", "shop", "--yes"]);
    assert_eq!(removed["revoked_tokens"], json!(["t2"]));
    assert_eq!(fake.given().deleted, ["token t2"]);
    let (_, now) = newest_tenant(&fake.given());
    assert!(now.hosts.is_empty());
    assert_eq!(now.egress.unwrap().hosts.len(), 1);
    let ran = tenant.run(&["renew"]);
    assert!(ran.code == 78, "{}{}", ran.out, ran.err);
    let shown = operator.run(&["tenant", "show", "shop"]);
    assert!(
        shown.out.contains("no key can sign for it"),
        "{}",
        shown.out
    );
    // Its hosts are free.
    let next = Person::new(_dir.path(), "next");
    let key = next.json(&["tenant", "key", "--plain-keys"]);
    let key = key["public_key"].as_str().unwrap();
    operator.json(&[
        "tenant",
        "add",
        "next",
        "--key",
        key,
        "--host",
        "web.shop.test",
    ]);
}
