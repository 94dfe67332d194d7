//! A control plane's state in a folder, for the tests of its users.

use std::path::Path;
use std::sync::Arc;

use casemate_api::token::{MadeToken, NewToken};
use casemate_control_store::StoreId;
use casemate_push::Member;
use casemate_trust::id::FleetId;
use casemate_trust::key::{PublicKey, SigningKey};
use casemate_trust::statement::{Root, Statement as _};

use super::rows::NodeRow;
use super::*;

/// A state with one node, `edge-1` in pool `main`.
pub(crate) async fn plane(folder: &Path) -> Arc<Plane> {
    let store = Redb::open(&folder.join("store.redb"), StoreId([1; 16])).unwrap();
    let key = SigningKey::from_seed(&[1; 32]).unwrap();
    let root = Root {
        version: 1,
        keys: vec![key.public()],
        threshold: 1,
        issued: 1,
        expires: 2,
    };
    let Member {
        name,
        pool,
        key: node,
        ..
    } = member();
    let row = NodeRow {
        name: name.clone(),
        pool,
        key: node,
        admitted: 1,
        join: root.sign(&[&key]),
    };
    let changes = vec![Change::put(key::node(&name), json(&row))];
    store.commit(vec![], changes).await.unwrap();
    let bundles = folder.join("bundles");
    std::fs::create_dir(&bundles).unwrap();
    let bundles = Bundles::open(&bundles).unwrap();
    let images = Images::open(&folder.join("images")).unwrap();
    let keys = PublicKeys {
        liveness: node,
        quic: node,
        api: node,
    };
    let logs = Logs::open(&folder.join("logs"), LogLimits::default());
    let folders = Folders {
        bundles,
        images,
        logs,
        reserve: Reserve::new(folder),
    };
    let plane = Plane::open(store, folders, keys, String::new(), 0).await;
    Arc::new(plane.unwrap())
}

/// The node.
pub(crate) fn member() -> Member {
    Member {
        name: "edge-1".parse().unwrap(),
        pool: "main".parse().unwrap(),
        key: PublicKey::from_bytes([20; 32]),
        fleet: FleetId([2; 32]),
    }
}

/// A new token.
pub(crate) async fn token(plane: &Plane, scope: Scope) -> MadeToken {
    let new = NewToken {
        scope,
        label: "test".into(),
        expires: None,
    };
    plane.make_token(&Actor::Program, new).await.unwrap()
}
