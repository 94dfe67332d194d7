//! Packets from a taken-over supervisor to the only privileged program.
#![no_main]

use casemate_sandbox::launch::{Command, Event};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(command) = Command::decode(bytes) {
        assert_eq!(command.encode(), bytes);
    }
    if let Ok(event) = Event::decode(bytes) {
        assert_eq!(event.encode(), bytes);
    }
});
