//! A control plane that sends a node arbitrary bytes, and a node that offers arbitrary versions.
#![no_main]

use casemate_push::{NodeEnd, Offer};
use casemate_push::bundle::Receiver;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|pieces: Vec<Vec<u8>>| {
    let mut node = NodeEnd::joining(vec![1]);
    let mut receiver = Receiver::default();
    for piece in pieces {
        let _offer = Offer::decode(&piece);
        if node.receive(&piece).is_err() {
            return;
        }
        loop {
            match node.poll_event() {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_) => return,
            }
        }
        if receiver.receive(&piece).is_ok() {
            while let Ok(Some(_)) = receiver.poll() {}
        }
    }
});
