//! The other end of a channel is hostile: nothing panics, and the memory that it can occupy stays
//! bounded.
#![no_main]

use casemate_wire::channel::{CHANNEL_WINDOW_BYTES, MAX_STREAMS};
use casemate_wire::{Channel, Event, ResponseHead, Side};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (bool, Vec<Vec<u8>>)| {
    let (acceptor, pieces) = input;
    let mut channel = Channel::new(if acceptor {
        Side::Acceptor
    } else {
        Side::Opener
    });
    let mut held = 0;
    for piece in pieces {
        if channel.receive(&piece).is_err() {
            return;
        }
        while let Some(event) = channel.event() {
            match event {
                Event::Request { id, .. } if id % 3 == 0 => channel.reset(id, 1),
                Event::Request { id, .. } if id % 3 == 1 => {
                    let head = ResponseHead {
                        status: 200,
                        fields: Default::default(),
                    };
                    channel.respond(id, &head, true).expect("a head that fits");
                }
                Event::Request { id, .. } if id % 7 == 0 => channel.go_away(id),
                Event::Request { id, .. } => channel.ask(id),
                Event::Data { bytes, .. } => held += bytes.len(),
                _ => {}
            }
        }
        assert!(
            held <= CHANNEL_WINDOW_BYTES as usize,
            "{held} bytes that were not used"
        );
        assert!(channel.streams() <= MAX_STREAMS);
    }
});
