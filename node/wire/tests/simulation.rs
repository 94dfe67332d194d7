//! Both ends of a channel, with many streams and choices that follow from a seed.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::HashMap;

use casemate_wire::{Channel, Event, Fields, RequestHead, ResponseHead, Side};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng as _, SeedableRng as _};

/// Steps of a simulation, and those in which streams are opened.
const STEPS: u32 = 4000;
const OPENING_STEPS: u32 = 3000;
/// Most bytes that are written, or carried, at a time.
const MAX_BYTES: usize = 100_000;

/// A direction of a stream: whether from the opener, and the stream.
type Direction = (bool, u32);

/// Both ends, and what each has sent and received.
struct World {
    dice: ChaCha8Rng,
    opener: Channel,
    acceptor: Channel,
    sent: HashMap<Direction, u64>,
    received: HashMap<Direction, u64>,
    /// Streams whose request bodies have not ended.
    live: Vec<u32>,
    /// Requests without a response.
    to_answer: Vec<u32>,
    /// Streams whose response bodies have not ended.
    writing_back: Vec<u32>,
    reset: Vec<u32>,
}

impl World {
    fn new(seed: u64) -> Self {
        Self {
            dice: ChaCha8Rng::seed_from_u64(seed),
            opener: Channel::new(Side::Opener),
            acceptor: Channel::new(Side::Acceptor),
            sent: HashMap::new(),
            received: HashMap::new(),
            live: Vec::new(),
            to_answer: Vec::new(),
            writing_back: Vec::new(),
            reset: Vec::new(),
        }
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.dice.next_u64() % bound as u64) as usize
    }

    fn step(&mut self, step: u32) {
        match self.below(8) {
            0 if step < OPENING_STEPS => self.open(),
            1 | 2 if !self.live.is_empty() => {
                let at = self.below(self.live.len());
                self.write(true, self.live[at]);
            }
            3 if !self.live.is_empty() => self.end_request(),
            4 if !self.to_answer.is_empty() => {
                let at = self.below(self.to_answer.len());
                let id = self.to_answer.swap_remove(at);
                self.acceptor.respond(id, &response(), false).unwrap();
                self.writing_back.push(id);
            }
            5 if !self.writing_back.is_empty() => self.write_back(),
            _ => {
                let (forth, back) = (self.below(MAX_BYTES), self.below(MAX_BYTES));
                self.carry(forth, back);
            }
        }
    }

    fn open(&mut self) {
        let opened = if self.below(2) == 0 {
            self.opener.open_to_ask(&request())
        } else {
            self.opener.open(&request(), false)
        };
        self.live.extend(opened);
    }

    fn end_request(&mut self) {
        let at = self.below(self.live.len());
        let id = self.live.swap_remove(at);
        if self.below(8) == 0 {
            self.opener.reset(id, 3);
            self.reset.push(id);
        } else {
            self.opener.finish(id, &Fields::default());
        }
    }

    fn write_back(&mut self) {
        let at = self.below(self.writing_back.len());
        self.write(false, self.writing_back[at]);
        if self.below(4) == 0 {
            let id = self.writing_back.swap_remove(at);
            let trailers = Fields::default().with("t", "1");
            self.acceptor.finish(id, &trailers);
        }
    }

    /// Bytes of a body count up, so that a lost or duplicated piece is noticed.
    fn write(&mut self, forth: bool, id: u32) {
        let length = self.below(MAX_BYTES) as u64;
        let sent = self.sent.entry((forth, id)).or_default();
        let bytes: Vec<u8> = (*sent..*sent + length).map(|n| n as u8).collect();
        let end = if forth {
            &mut self.opener
        } else {
            &mut self.acceptor
        };
        *sent += end.send(id, &bytes).unwrap_or(0) as u64;
    }

    /// Moves at most `forth` and `back` bytes, and handles the events that they contain.
    fn carry(&mut self, forth: usize, back: usize) {
        carry(&mut self.opener, &mut self.acceptor, forth);
        carry(&mut self.acceptor, &mut self.opener, back);
        while let Some(event) = self.acceptor.event() {
            self.take(true, event);
        }
        while let Some(event) = self.opener.event() {
            self.take(false, event);
        }
    }

    fn take(&mut self, forth: bool, event: Event) {
        let end = if forth {
            &mut self.acceptor
        } else {
            &mut self.opener
        };
        match event {
            Event::Request { id, .. } => {
                if !id.is_multiple_of(3) {
                    end.ask(id);
                }
                self.to_answer.push(id);
            }
            Event::Data { id, bytes } => {
                let count = self.received.entry((forth, id)).or_default();
                for byte in &bytes {
                    assert_eq!(*byte, *count as u8);
                    *count += 1;
                }
                end.consumed(id, bytes.len());
            }
            Event::Reset { id, .. } => {
                self.reset.push(id);
                self.to_answer.retain(|other| *other != id);
            }
            _ => {}
        }
    }

    /// Ends every stream, and carries everything.
    fn settle(&mut self) {
        for id in std::mem::take(&mut self.live) {
            self.opener.finish(id, &Fields::default());
        }
        for _ in 0..1000 {
            self.carry(usize::MAX, usize::MAX);
            for id in std::mem::take(&mut self.to_answer) {
                self.acceptor.respond(id, &response(), true).unwrap();
            }
            for id in std::mem::take(&mut self.writing_back) {
                self.acceptor.finish(id, &Fields::default());
            }
        }
    }
}

fn carry(from: &mut Channel, to: &mut Channel, most: usize) {
    let length = from.output().len().min(most);
    let bytes: Vec<u8> = from.output().drain(..length).collect();
    to.receive(&bytes).unwrap();
}

fn request() -> RequestHead {
    RequestHead {
        method: "POST".into(),
        target: "https://a.test/".into(),
        fields: Fields::default().with("x", "y"),
    }
}

fn response() -> ResponseHead {
    ResponseHead {
        status: 200,
        fields: Fields::default(),
    }
}

/// Many streams with bodies both ways, cut into arbitrary pieces, some reset: all data arrives in
/// order, neither end breaks the protocol, and no stream is left at the end.
#[test]
fn bodies_arrive_completely_and_in_order_and_no_stream_is_left() {
    for seed in 0..4 {
        let mut world = World::new(seed);
        (0..STEPS).for_each(|step| world.step(step));
        world.settle();
        for (direction, sent) in &world.sent {
            if !world.reset.contains(&direction.1) {
                let received = world.received.get(direction).copied().unwrap_or(0);
                assert_eq!(received, *sent, "seed {seed}: {direction:?}");
            }
        }
        assert!(world.sent.len() > 100, "seed {seed}: streams were opened");
        assert_eq!((world.opener.streams(), world.acceptor.streams()), (0, 0));
    }
}
