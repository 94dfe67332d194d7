//! Control messages of a program that was taken over.
#![no_main]

use casemate_wire::control::gateway::FromGateway;
use casemate_wire::control::vault::{FromVault, ToVault};
use casemate_wire::control::worker::{FromWorker, ToWorker};
use casemate_wire::control::{decode, encode};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(payload) = casemate_wire::frame::control_payload(bytes) else {
        return;
    };
    if let Ok(message) = decode::<FromWorker>(payload) {
        let again = decode::<FromWorker>(&encode(&message).expect("it fitted"))
            .expect("what was decoded decodes again");
        assert_eq!(message, again);
    }
    let _worker = decode::<ToWorker>(payload);
    let _gateway = decode::<FromGateway>(payload);
    let _vault = (decode::<FromVault>(payload), decode::<ToVault>(payload));
});
