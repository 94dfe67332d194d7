//! Statements from a taken-over control plane: an unsigned statement is never accepted.
#![no_main]

use casemate_trust::dsse::Envelope;
use casemate_trust::id::FleetId;
use casemate_trust::join::{JoinRequest, JoinToken};
use casemate_trust::judge::{Judge, no_objects};
use casemate_trust::lease::Lease;
use casemate_trust::statement::Statement;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _token = text.parse::<JoinToken>();
        let _file = casemate_trust::keyfile::is_encrypted(text);
    }
    let Ok(envelope) = Envelope::parse(bytes) else {
        return;
    };
    assert_eq!(
        Envelope::parse(&envelope.to_bytes()).expect("what was parsed parses again"),
        envelope
    );
    let _request = (JoinRequest::read(&envelope), Lease::read(&envelope));
    let judge = Judge::new(FleetId([7; 32]), None);
    assert!(
        judge.decide(&envelope, 1, &no_objects).is_err(),
        "the first root's digest is a constant"
    );
    // A stored row of another fleet is not accepted either.
    let memory = judge.memory().clone();
    let (replayed, _) = Judge::replay(memory, None, [((), envelope)], &no_objects);
    assert_eq!(replayed.memory(), judge.memory());
});
