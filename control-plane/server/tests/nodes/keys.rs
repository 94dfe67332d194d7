//! Whose key a connection shows: of nobody, of a node, or of two machines.

use super::*;

/// The code with which a stranger's request is refused.
async fn refused_with(node: &mut Node) -> String {
    match node.next().await.unwrap() {
        NodeEvent::JoinRefused { code, .. } => code,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_unknown_key_may_only_join() {
    let control = Control::new().await;
    let fleet = Fleet::new(&control).await;
    let said_hello = Node::connect(
        &control,
        &key(66),
        NodeEnd::member(hello("edge-1", &key(66), fleet.id)),
    )
    .await;
    assert!(said_hello.close_code().await >= 16, "a violation");
    // Requests without a registered token, with an expired one, and signed by another key.
    let address = (control.quic.clone(), control.keys.quic);
    let unknown = JoinToken::new(
        fleet.id,
        address,
        name("edge-9"),
        name("main"),
        LATER,
        &mut support::fleet::random,
    );
    let mut node = joining(&control, &fleet, &unknown, &key(66)).await;
    assert_eq!(refused_with(&mut node).await, "token_unknown");
    assert_eq!(node.close_code().await, u64::from(close::JOIN_REFUSED));
    let token = fleet.join_token(&control, "edge-1", LATER).await;
    let stolen = fleet.join_request(&token, &key(20)).to_bytes();
    let mut node = Node::connect(&control, &key(66), NodeEnd::joining(stolen)).await;
    assert_eq!(refused_with(&mut node).await, "join_identity");
    let joins: JoinList = control.operator().get("/v1/nodes/joins").await.ok().json();
    assert!(joins.joins.is_empty());
    let refused = support::refused(&control).await;
    let subjects: Vec<_> = refused.into_iter().map(|(_, _, subject)| subject).collect();
    let stolen = key(66).public();
    assert_eq!(
        subjects,
        [
            format!("token_unknown: edge-9, key {stolen}"),
            format!("join_identity: edge-1, key {stolen}"),
        ]
    );
}

#[tokio::test]
async fn silent_unknown_keys_are_limited_and_nodes_keep_their_slots() {
    let control = Control::new().await;
    let fleet = Fleet::new(&control).await;
    let mut node = member(&control, &fleet, "edge-1", &key(20)).await;
    node.sync().await;
    // One more than allowed from one address.
    let mut strangers = Vec::new();
    for number in 100..=116 {
        let config = quic_config(&key(number), control.keys.quic, VERSIONS.alpns());
        strangers.push(connect(&control.quic, config).await.unwrap());
    }
    let refused = strangers.iter().map(|(_, connection)| {
        Box::pin(async {
            match connection.closed().await {
                ConnectionError::ApplicationClosed(closed)
                    if closed.error_code == close::TOO_MANY.into() => {}
                _ => std::future::pending().await,
            }
        })
    });
    let refused = futures_util::future::select_all(refused);
    tokio::time::timeout(SOON, refused)
        .await
        .expect("none was refused");
    let again = NodeEnd::member(hello("edge-1", &key(20), fleet.id));
    let mut again = Node::connect(&control, &key(20), again).await;
    again.sync().await;
}

#[tokio::test]
async fn a_node_that_connects_twice_keeps_the_newer_connection() {
    let control = Control::new().await;
    let fleet = Fleet::new(&control).await;
    let first = member(&control, &fleet, "edge-1", &key(20)).await;
    let mut second = Node::connect(
        &control,
        &key(20),
        NodeEnd::member(hello("edge-1", &key(20), fleet.id)),
    )
    .await;
    assert_eq!(first.close_code().await, u64::from(close::REPLACED));
    assert_eq!(
        second.sync().await.ids().len(),
        4,
        "root, online key, pool and grant"
    );
}

#[tokio::test]
async fn two_machines_with_one_key_are_reported_and_do_not_evict_each_other() {
    let control = Control::new().await;
    let fleet = Fleet::new(&control).await;
    let mut one = member(&control, &fleet, "edge-1", &key(20)).await;
    let again = async || {
        let end = NodeEnd::member(hello("edge-1", &key(20), fleet.id));
        Node::connect(&control, &key(20), end).await
    };
    // Each machine reconnects when the other has taken its place, as programs do.
    let mut other = again().await;
    assert_eq!(one.close_code().await, u64::from(close::REPLACED));
    one = again().await;
    assert_eq!(other.close_code().await, u64::from(close::REPLACED));
    let nodes = async || {
        let nodes: NodeList = control.operator().get("/v1/nodes").await.ok().json();
        nodes.nodes
    };
    eventually("it is noticed", async || {
        nodes().await[0].duplicate_seen.is_some()
    })
    .await;
    other = again().await;
    assert_eq!(other.close_code().await, u64::from(close::DUPLICATE));
    one.sync().await;
    let refused = support::refused_as(&control, "node.duplicate").await;
    assert!(
        refused.len() == 1 && refused[0].contains("two machines have the key of edge-1"),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_wrong_alpn_a_wrong_server_key_and_bundles_of_others_are_refused() {
    let control = Control::new().await;
    let fleet = Fleet::new(&control).await;
    assert!(
        connect(
            &control.quic,
            quic_config(&key(20), control.keys.quic, vec![b"h3".to_vec()])
        )
        .await
        .is_err()
    );
    assert!(
        connect(
            &control.quic,
            quic_config(&key(20), control.keys.api, VERSIONS.alpns())
        )
        .await
        .is_err()
    );
    let tenant = control.client(&fleet.tenant_token);
    let bundle = b"listed by no manifest";
    tenant
        .put(
            &format!("/v1/bundles/{}", Digest::of(bundle)),
            bundle.to_vec(),
        )
        .await
        .ok();
    let mut node = member(&control, &fleet, "edge-1", &key(20)).await;
    node.sync().await;
    node.end.fetch_bundle(Digest::of(bundle), 0).unwrap();
    let digest = Digest::of(bundle);
    assert_eq!(
        node.next().await.unwrap(),
        NodeEvent::Unavailable { digest }
    );
}
