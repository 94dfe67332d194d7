use casemate_api::node::JoinView;
use casemate_trust::Seconds;
use casemate_trust::id::FleetId;
use casemate_trust::join::{JoinError, JoinRequest, JoinToken};
use casemate_trust::key::{SealingKey, SigningKey};
use casemate_trust::statement::Statement as _;

use super::members::Admitted;
use super::request::{Rejection, decide};

const FLEET: FleetId = FleetId([7; 32]);
const NOW: Seconds = 1000;

fn key(seed: u8) -> SigningKey {
    SigningKey::from_seed(&[seed; 32]).unwrap()
}

fn token(node: &str, fill: u8) -> JoinToken {
    let control = ("control.test:1".to_owned(), key(1).public());
    let (node, pool) = (node.parse().unwrap(), "main".parse().unwrap());
    JoinToken::new(
        FLEET,
        control,
        node,
        pool,
        NOW + 10,
        &mut |bytes: &mut [u8]| bytes.fill(fill),
    )
}

fn join(token: &JoinToken, node: &SigningKey) -> JoinView {
    let request = JoinRequest {
        fleet: token.fleet,
        node: token.node.clone(),
        pool: token.pool.clone(),
        node_key: node.public(),
        sealing_key: SealingKey::of_seed(&[5; 32]).unwrap(),
    };
    let envelope = request.sign(&[&token.key().unwrap(), node]);
    JoinView {
        request: envelope.payload_digest(),
        node: request.node,
        pool: request.pool,
        node_key: request.node_key,
        envelope,
        first_seen: NOW,
    }
}

fn member(name: &str, key: &SigningKey) -> Admitted {
    Admitted {
        node: name.parse().unwrap(),
        pool: "main".parse().unwrap(),
        node_key: key.public(),
        sealing_key: SealingKey::of_seed(&[5; 32]).unwrap(),
        admitted: NOW,
        revoked: false,
        join: None,
    }
}

#[test]
fn a_token_admits_one_node_once() {
    let token = token("edge-1", 1);
    let mut records = vec![token.record().unwrap()];
    let first = join(&token, &key(8));
    assert!(decide(&first, FLEET, &records, &[], NOW).is_ok());
    records[0].used_by = Some(key(8).public());
    assert!(
        decide(&first, FLEET, &records, &[], NOW).is_ok(),
        "the same node may try again"
    );
    let second = join(&token, &key(9));
    assert_eq!(
        decide(&second, FLEET, &records, &[], NOW),
        Err(Rejection::TokenUsed)
    );
}

#[test]
fn every_refusal_names_its_reason() {
    let one = token("edge-1", 1);
    let records = vec![token("edge-1", 2).record().unwrap()];
    let asked = join(&one, &key(8));
    assert_eq!(
        decide(&asked, FLEET, &records, &[], NOW),
        Err(Rejection::TokenUnknown)
    );
    let records = vec![one.record().unwrap()];
    let expired = decide(&asked, FLEET, &records, &[], NOW + 10);
    assert!(matches!(
        expired,
        Err(Rejection::Join(JoinError::Expired(_)))
    ));
    let other = decide(&asked, FleetId([8; 32]), &records, &[], NOW);
    assert_eq!(other, Err(Rejection::FleetOther));
    let taken = decide(&asked, FLEET, &records, &[member("edge-1", &key(9))], NOW);
    assert_eq!(taken, Err(Rejection::NameTaken));
    let twice = decide(&asked, FLEET, &records, &[member("edge-2", &key(8))], NOW);
    assert_eq!(twice, Err(Rejection::KeyTaken("edge-2".parse().unwrap())));
    let mut gone = member("edge-1", &key(9));
    gone.revoked = true;
    assert!(decide(&asked, FLEET, &records, &[gone], NOW).is_ok());
}

#[test]
fn a_listing_that_contradicts_the_signed_request_is_refused() {
    let token = token("edge-1", 1);
    let records = vec![token.record().unwrap()];
    let asked = join(&token, &key(8));
    let relabels: [fn(&mut JoinView); 4] = [
        |join| join.node = "edge-2".parse().unwrap(),
        |join| join.pool = "eu".parse().unwrap(),
        |join| join.node_key = key(9).public(),
        |join| join.request = casemate_trust::id::Digest([0; 32]),
    ];
    assert!(decide(&asked, FLEET, &records, &[], NOW).is_ok());
    for relabel in relabels {
        let mut relabelled = asked.clone();
        relabel(&mut relabelled);
        let decided = decide(&relabelled, FLEET, &records, &[], NOW);
        let (node, pool) = (asked.node.clone(), asked.pool.clone());
        assert_eq!(decided, Err(Rejection::LabelOther(node, pool)));
    }
}
