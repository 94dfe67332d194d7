//! Images over the real API and real QUIC: uploaded in parts, signed for, pushed to their pools, fetched in pieces.
// A panic is how a test fails.
#![allow(clippy::unwrap_used)]

mod support;

use casemate_api::image::{ImageList, ImageUpload};
use casemate_api::node::{MachineView, NodeList};
use casemate_api::token::Scope;
use casemate_push::{MAX_IMAGE_PIECE_BYTES, NodeEnd, NodeEvent, StatementId};
use casemate_trust::id::Digest;
use casemate_trust::image::Image;
use casemate_trust::statement::Statement as _;
use support::fleet::{LATER, key, name, token};
use support::node::{hello, member};
use support::{Client, Control, Fleet, Node, eventually, refused};

fn content(number: u8) -> Vec<u8> {
    let bytes = 2 * MAX_IMAGE_PIECE_BYTES as usize + 1000;
    (0..bytes).map(|at| at as u8 ^ number).collect()
}

fn image(fleet: &Fleet, version: &str, content: &[u8], pools: &[&str]) -> Image {
    Image {
        fleet: fleet.id,
        version: version.parse().unwrap(),
        digest: Digest::of(content),
        bytes: content.len() as u64,
        pools: pools.iter().map(|pool| name(pool)).collect(),
        issued: 1,
        expires: LATER,
    }
}

fn id(image: &Image) -> StatementId {
    StatementId::Image {
        version: image.version.as_u64(),
        statement: image.sign(&[&key(1)]).payload_digest(),
    }
}

fn part(digest: &Digest, offset: usize, bytes: usize) -> String {
    format!("/v1/images/{digest}?offset={offset}&bytes={bytes}")
}

async fn upload(client: &Client, content: &[u8]) -> Digest {
    let digest = Digest::of(content);
    let path = part(&digest, 0, content.len());
    let answer: ImageUpload = client.put(&path, content).await.ok().json();
    assert!(answer.whole);
    digest
}

async fn submit(client: &Client, image: &Image, seed: u8) -> support::client::Answer {
    let envelope = image.sign(&[&key(seed)]).to_bytes();
    client.ask("POST", "/v1/statements", envelope).await
}

async fn list(control: &Control) -> Vec<(String, Vec<String>)> {
    let list: ImageList = control.operator().get("/v1/images").await.ok().json();
    let shown = list.images.into_iter().map(|image| {
        let pools = image.pools.iter().map(ToString::to_string).collect();
        (image.version.to_string(), pools)
    });
    shown.collect()
}

#[tokio::test]
async fn only_the_operator_uploads_and_a_signed_image_has_its_file() {
    let mut control = Control::new().await;
    let fleet = Fleet::new(&control).await;
    let content = content(1);
    let digest = Digest::of(&content);
    let good = image(&fleet, "1.2.3", &content, &["main"]);
    let path = part(&digest, 0, content.len());
    let tenant = control.client(&fleet.tenant_token);
    let reader = control.client(&token(&control.operator(), Scope::ReadOnly).await);
    for client in [&tenant, &reader] {
        assert_eq!(
            client.put(&path, content.clone()).await.refused(403),
            "forbidden"
        );
        assert_eq!(submit(client, &good, 1).await.refused(403), "forbidden");
    }
    assert_eq!(tenant.get("/v1/images").await.refused(403), "forbidden");
    let operator = control.operator();
    assert_eq!(
        submit(&operator, &good, 1).await.refused(422),
        "image_missing"
    );
    // The image is uploaded in parts, with a restart in between.
    let half = content.len() / 2;
    let first: ImageUpload = operator.put(&path, &content[..half]).await.ok().json();
    assert_eq!((first.received_bytes, first.whole), (half as u64, false));
    control.stop().await;
    control.start().await;
    let operator = control.operator();
    let about = format!("/v1/images/{digest}");
    let there: ImageUpload = operator.get(&about).await.ok().json();
    assert_eq!(there, first);
    let again = operator.put(&path, content.clone()).await;
    assert_eq!(again.details()["received_bytes"], half);
    assert_eq!(again.refused(409), "conflict");
    assert_eq!(
        submit(&operator, &good, 1).await.refused(422),
        "image_missing"
    );
    let rest = part(&digest, half, content.len());
    operator.put(&rest, &content[half..]).await.ok();
    // The same rules apply as at a node.
    assert_eq!(
        submit(&operator, &good, 66).await.refused(422),
        "signature_threshold"
    );
    let mut short = good.clone();
    short.bytes -= 1;
    assert_eq!(
        submit(&operator, &short, 1).await.refused(422),
        "image_missing"
    );
    submit(&operator, &good, 1).await.ok();
    let lower = image(&fleet, "1.2.2", &content, &["main", "other"]);
    assert_eq!(
        submit(&operator, &lower, 1).await.refused(422),
        "image_version_lower"
    );
    let other = content_of(&operator, 2).await;
    let other = image(&fleet, "1.2.3", &other, &["main"]);
    let code = submit(&operator, &other, 1).await.refused(422);
    assert_eq!(code, "image_same_version_other_digest");
    assert_eq!(
        list(&control).await,
        [("1.2.3".into(), vec!["main".into()])]
    );
    let subject = format!("image_version_lower: {}", id(&lower));
    let tries = refused(&control).await;
    assert!(tries.iter().any(|(_, _, about)| *about == subject));
    a_wider_image_supersedes(&mut control, &fleet, &content, &lower).await;
}

async fn a_wider_image_supersedes(
    control: &mut Control,
    fleet: &Fleet,
    content: &[u8],
    lower: &Image,
) {
    let operator = control.operator();
    // An image of more pools supersedes; both are remembered over a restart.
    let wider = image(fleet, "1.2.3", content, &["main", "other"]);
    submit(&operator, &wider, 1).await.ok();
    let canary = image(fleet, "1.3.0", content, &["other"]);
    submit(&operator, &canary, 1).await.ok();
    let wanted = [
        ("1.3.0".into(), vec!["other".into()]),
        ("1.2.3".into(), vec!["main".into()]),
    ];
    assert_eq!(list(control).await, wanted);
    control.stop().await;
    control.start().await;
    assert_eq!(list(control).await, wanted);
    let operator = control.operator();
    assert_eq!(
        submit(&operator, lower, 1).await.refused(422),
        "image_version_lower"
    );
    let held: casemate_api::fleet::StatementAnswer =
        submit(&operator, &canary, 1).await.ok().json();
    assert_eq!(held.accepted, casemate_api::fleet::Outcome::Held);
}

async fn content_of(operator: &Client, number: u8) -> Vec<u8> {
    let content = content(number);
    upload(operator, &content).await;
    content
}

#[tokio::test]
async fn nodes_get_their_pools_image_in_pieces_with_deployments_in_between() {
    let mut control = Control::new().await;
    let fleet = Fleet::new(&control).await;
    let operator = control.operator();
    let mut node = member(&control, &fleet, "edge-1", &key(20)).await;
    let came = node.sync().await;
    // A node of another pool is sent no image, and can fetch none.
    let elsewhere = content_of(&operator, 3).await;
    let foreign = image(&fleet, "9.0.0", &elsewhere, &["other"]);
    submit(&operator, &foreign, 1).await.ok();
    assert_eq!(node.sync().await.ids(), []);
    node.end.fetch_image(foreign.digest, 0, 1).unwrap();
    let digest = foreign.digest;
    assert_eq!(
        node.next().await.unwrap(),
        NodeEvent::ImageUnavailable { digest }
    );

    let bytes = content_of(&operator, 1).await;
    let first = image(&fleet, "1.0.0", &bytes, &["main", "other2"]);
    submit(&operator, &first, 1).await.ok();
    assert_eq!(node.sync().await.ids(), [id(&first)]);
    let piece = MAX_IMAGE_PIECE_BYTES;
    let mut read = node.fetch_image(first.digest, 0, piece).await;
    // A deployment arrives between two pieces, and the next piece over the next connection, to
    // another server.
    let tenant = control.client(&fleet.tenant_token);
    fleet.deploy(&tenant, 1, b"bundle").await;
    node.sync().await;
    assert_eq!(node.fetch(Digest::of(b"bundle"), 0).await, b"bundle");
    control.stop().await;
    control.start().await;
    let mut again = hello("edge-1", &key(20), fleet.id);
    again.has = came.has();
    let mut node = Node::connect(&control, &key(20), NodeEnd::member(again)).await;
    assert!(node.sync().await.ids().contains(&id(&first)));
    while read.len() < bytes.len() {
        let offset = read.len() as u64;
        read.extend(node.fetch_image(first.digest, offset, piece).await);
    }
    assert!(read == bytes);

    // A full resync sends only the newest.
    let operator = control.operator();
    let bytes = content_of(&operator, 2).await;
    let second = image(&fleet, "1.0.1", &bytes, &["main"]);
    submit(&operator, &second, 1).await.ok();
    let fresh = hello("edge-1", &key(20), fleet.id);
    let mut node = Node::connect(&control, &key(20), NodeEnd::member(fresh)).await;
    let came = node.sync().await;
    assert!(came.ids().contains(&id(&second)) && !came.ids().contains(&id(&first)));
    node.end.fetch_image(first.digest, 0, 1).unwrap();
    let digest = first.digest;
    assert_eq!(
        node.next().await.unwrap(),
        NodeEvent::ImageUnavailable { digest }
    );

    // The node's report on its machine is in the list.
    let status = serde_json::json!({
        "machine": { "version": "1.0.0", "storage_key": "tpm", "update": null },
        "image": { "version": "1.0.1", "state": "fetching", "bytes": 200, "fetched_bytes": 50 },
    });
    node.end.status(status.to_string());
    node.write().await;
    let wanted = MachineView {
        version: Some("1.0.0".into()),
        storage_key: Some("tpm".into()),
        update: Some("1.0.1 fetching 25 %".into()),
    };
    eventually("the machine", async || {
        let list: NodeList = control.operator().get("/v1/nodes").await.ok().json();
        list.nodes[0].machine.as_ref() == Some(&wanted)
    })
    .await;
}
