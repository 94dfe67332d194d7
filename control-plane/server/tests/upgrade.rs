//! A fleet is upgraded while it serves: with programs that support one version of the push
//! protocol, and programs that support that and the next, in either order; and with programs that
//! have no version in common. The numbers are the test's: all versions mean the same, because only
//! one exists. When the first real change comes, these tests use it.
// A panic is how a test fails.
#![allow(clippy::unwrap_used)]

mod support;

use casemate_api::node::{CheckView, NodeList, NodeView};
use casemate_push::{NodeEnd, StatementId, VERSIONS, Versions, close};
use support::fleet::key;
use support::node::{connect, hello, member, quic_config};
use support::{Control, Fleet, Node};

/// The versions of the programs before an upgrade, after it, and after the next one.
const EARLIER: Versions = VERSIONS;
const LATER: Versions = Versions {
    oldest: VERSIONS.newest,
    newest: VERSIONS.newest + 1,
};
const FAR: Versions = Versions {
    oldest: VERSIONS.newest + 2,
    newest: VERSIONS.newest + 3,
};
const NAMES: [(&str, u8); 2] = [("edge-1", 20), ("edge-2", 21)];

struct Upgrade {
    control: Control,
    fleet: Fleet,
    /// The versions of each node's programs.
    nodes: [Versions; 2],
    manifest: u64,
}

impl Upgrade {
    async fn begin() -> Self {
        let control = Control::new().await;
        let fleet = Fleet::new(&control).await;
        for (name, seed) in NAMES {
            member(&control, &fleet, name, &key(seed))
                .await
                .sync()
                .await;
        }
        Self {
            control,
            fleet,
            nodes: [EARLIER; 2],
            manifest: 0,
        }
    }

    async fn control_speaks(&mut self, versions: Versions) {
        self.control.stop().await;
        self.control.push_versions = versions;
        self.control.start().await;
    }

    /// Connects every node, deploys, and has every node take the deployment; the versions that were spoken.
    async fn deploy(&mut self) -> [u16; 2] {
        let mut spoken = [0; 2];
        let mut connected = Vec::new();
        for (at, (name, seed)) in NAMES.into_iter().enumerate() {
            let key = key(seed);
            let hello = hello(name, &key, self.fleet.id);
            let speaking = Node::speaking(&self.control, &key, self.nodes[at], hello);
            let (version, mut node) = speaking.await;
            node.sync().await;
            spoken[at] = version;
            connected.push(node);
        }
        self.manifest += 1;
        let client = self.control.client(&self.fleet.tenant_token);
        let bundle = format!("bundle {}", self.manifest);
        self.fleet
            .deploy(&client, self.manifest, bundle.as_bytes())
            .await;
        let tenant = self.fleet.tenant.id;
        let wanted = StatementId::Manifest {
            tenant,
            version: self.manifest,
        };
        for node in &mut connected {
            assert!(node.sync().await.ids().contains(&wanted));
            let digest = casemate_trust::id::Digest::of(bundle.as_bytes());
            assert_eq!(node.fetch(digest, 0).await, bundle.as_bytes());
        }
        for (name, _) in NAMES {
            support::eventually("the deployment is acknowledged", async || {
                let path = format!("/v1/nodes/{name}");
                let view: NodeView = self.control.operator().get(&path).await.ok().json();
                view.manifests.get(&tenant) == Some(&self.manifest)
            })
            .await;
        }
        spoken
    }
}

#[tokio::test]
async fn a_fleet_is_upgraded_control_plane_first() {
    let mut fleet = Upgrade::begin().await;
    let (old, new) = (EARLIER.newest, LATER.newest);
    assert_eq!(fleet.deploy().await, [old, old]);
    fleet.control_speaks(LATER).await;
    assert_eq!(fleet.deploy().await, [old, old]);
    fleet.nodes[0] = LATER;
    assert_eq!(fleet.deploy().await, [new, old], "one node after the other");
    fleet.nodes[1] = LATER;
    assert_eq!(fleet.deploy().await, [new, new]);
    // The upgrade is reverted.
    fleet.control_speaks(EARLIER).await;
    assert_eq!(fleet.deploy().await, [old, old]);
}

#[tokio::test]
async fn a_fleet_is_upgraded_nodes_first() {
    let mut fleet = Upgrade::begin().await;
    let (old, new) = (EARLIER.newest, LATER.newest);
    fleet.nodes[1] = LATER;
    assert_eq!(fleet.deploy().await, [old, old]);
    fleet.nodes[0] = LATER;
    assert_eq!(fleet.deploy().await, [old, old]);
    fleet.control_speaks(LATER).await;
    assert_eq!(fleet.deploy().await, [new, new]);
    fleet.nodes = [EARLIER; 2];
    assert_eq!(fleet.deploy().await, [old, old], "and back again");
}

/// The check of the protocol, and the version that `edge-1` was last seen with.
async fn listed(control: &Control) -> (Option<CheckView>, Option<String>) {
    let list: NodeList = control.operator().get("/v1/nodes").await.ok().json();
    let node = list.nodes.into_iter().next().unwrap();
    let checks = node.health.map(|health| health.checks);
    let mut checks = checks.into_iter().flatten();
    let check = checks.find(|check| check.name == "protocol");
    (check, node.version)
}

#[tokio::test]
async fn a_node_without_a_common_version_is_informed_and_listed() {
    let mut control = Control::new().await;
    let fleet = Fleet::new(&control).await;
    let mut node = member(&control, &fleet, "edge-1", &key(20)).await;
    node.sync().await;
    drop(node);
    assert_eq!(listed(&control).await, (None, Some("test".into())));

    // The nodes were upgraded twice, the control plane not at all.
    let (code, reason) = Node::apart(&control, &key(20), FAR, "9.0.0").await;
    assert_eq!(code, u64::from(close::APART));
    let (old, far) = (EARLIER.newest, FAR.oldest);
    for part in [
        format!("casemate 9.0.0) speaks versions {far} to {}", FAR.newest),
        format!("version {old}; upgrade the control plane"),
    ] {
        assert!(reason.contains(&part), "{part}: {reason}");
    }
    let (check, software) = listed(&control).await;
    let check = check.unwrap();
    assert_eq!((check.ok, check.detail), (false, reason));
    assert_eq!(software.as_deref(), Some("9.0.0"));
    // An unknown key gets the reason, and is not stored.
    let (code, _) = Node::apart(&control, &key(66), FAR, "9.0.0").await;
    assert_eq!(code, u64::from(close::APART));
    let list: NodeList = control.operator().get("/v1/nodes").await.ok().json();
    assert_eq!(list.nodes.len(), 1);

    // Once it supports a common version, it is served, and the report is removed.
    let end = NodeEnd::member(hello("edge-1", &key(20), fleet.id));
    let mut node = Node::connect(&control, &key(20), end).await;
    node.sync().await;
    assert_eq!(listed(&control).await, (None, Some("test".into())));
    drop(node);

    // The other direction: the control plane is newer than the node.
    control.stop().await;
    control.push_versions = FAR;
    control.start().await;
    let (code, reason) = Node::apart(&control, &key(20), EARLIER, "0.1.0").await;
    assert_eq!(code, u64::from(close::APART));
    assert!(reason.ends_with("; upgrade the node"), "{reason}");
    assert!(listed(&control).await.0.is_some());
}

#[tokio::test]
async fn programs_from_before_versions_were_negotiated_are_served() {
    let control = Control::new().await;
    let fleet = Fleet::new(&control).await;
    let mut before = member(&control, &fleet, "edge-1", &key(20)).await;
    before.sync().await;
    // They offer one name, and send version 3.
    let name = b"casemate-push/2".to_vec();
    let config = quic_config(&key(20), control.keys.quic, vec![name.clone()]);
    let connected = connect(&control.quic, config).await.unwrap();
    let data = connected.1.handshake_data().unwrap();
    let data = data.downcast::<quinn::crypto::rustls::HandshakeData>();
    assert_eq!(data.unwrap().protocol, Some(name));
    let mut hello = hello("edge-1", &key(20), fleet.id);
    hello.protocol = 3;
    let mut node = Node::on(connected, NodeEnd::member(hello)).await.unwrap();
    node.sync().await;
}
