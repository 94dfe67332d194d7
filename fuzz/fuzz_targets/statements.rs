//! Statements from a taken-over control plane: nothing that nobody signed is accepted.
#![no_main]

use casemate_trust::dsse::Envelope;
use casemate_trust::id::FleetId;
use casemate_trust::join::{JoinRequest, JoinToken};
use casemate_trust::judge::Judge;
use casemate_trust::lease::Lease;
use casemate_trust::statement::Statement;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _token = text.parse::<JoinToken>();
        let _file = casemate_trust::keyfile::is_encrypted(text);
    }
    let Ok(envelope) = Envelope::parse(bytes) else { return };
    assert_eq!(Envelope::parse(&envelope.to_bytes()).expect("what was parsed parses again"), envelope);
    let _request = (JoinRequest::read(&envelope), Lease::read(&envelope));
    let mut judge = Judge::new(FleetId([7; 32]), None);
    let before = judge.memory().clone();
    assert!(judge.accept_root(&envelope, 1).is_err(), "a root whose digest is a constant");
    assert!(judge.accept_online_key(&envelope, 1).is_err());
    assert!(judge.accept_pool(&envelope, 1).is_err());
    assert!(judge.accept_image(&envelope, 1).is_err());
    assert!(judge.accept_revocations(&envelope, 1).is_err());
    assert!(judge.accept_tenant(&envelope, 1).is_err());
    assert!(judge.accept_manifest(&envelope, 1, &|_| None).is_err());
    assert!(judge.accept_freshness(&envelope, 1).is_err());
    assert_eq!(*judge.memory(), before, "a refusal changes nothing");
});
