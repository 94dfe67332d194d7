//! Servers of DHCP that answer anything, through the whole life of a lease.
#![no_main]

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;

#[path = "../../images/init/src/network/dhcp.rs"]
#[allow(dead_code, reason = "init needs more of it")]
mod dhcp;

use dhcp::{Client, Effect};

const HARDWARE: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];
/// A lease of the longest time, and time for all retries: nothing happens later.
const LONGEST_MS: u64 = u32::MAX as u64 * 1000 + 1_000_000;

/// The kind of an answer: those that a lease consists of are likely.
#[derive(Arbitrary, Debug)]
enum Kind {
    Offer,
    Ack,
    Nak,
    Other(u8),
}

impl Kind {
    fn number(&self) -> u8 {
        match self {
            Self::Offer => 2,
            Self::Ack => 5,
            Self::Nak => 6,
            Self::Other(number) => *number,
        }
    }
}

/// An address: few, so that an offer and its acknowledgement often name the same.
#[derive(Arbitrary, Debug)]
enum Address {
    One,
    Two,
    Multicast,
    Loopback,
    Broadcast,
    Any(u32),
}

impl Address {
    fn number(&self) -> u32 {
        match self {
            Self::One => 0x0a00_020f,
            Self::Two => 0x0a00_0210,
            Self::Multicast => 0xe000_0001,
            Self::Loopback => 0x7f00_0001,
            Self::Broadcast => u32::MAX,
            Self::Any(address) => *address,
        }
    }
}

#[derive(Arbitrary, Debug)]
enum Step {
    /// A packet, whatever it is.
    Packet(Vec<u8>),
    /// An answer to the last question: of this kind, for this address, with these options behind
    /// it.
    Answer {
        kind: Kind,
        address: Address,
        server: u8,
        options: Vec<(u8, Vec<u8>)>,
    },
    /// Time passes until the client has something to do.
    Wait,
    /// Time passes.
    Pass(u32),
}

fn answer(asked: &[u8], kind: u8, address: u32, server: u32, options: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let mut packet = vec![0; 236];
    (packet[0], packet[1], packet[2]) = (2, 1, 6);
    packet[4..8].copy_from_slice(&asked[4..8]);
    packet[16..20].copy_from_slice(&address.to_be_bytes());
    packet[28..34].copy_from_slice(&HARDWARE);
    packet.extend([99, 130, 83, 99, 53, 1, kind, 54, 4]);
    packet.extend(server.to_be_bytes());
    for (code, value) in options {
        let value = &value[..value.len().min(255)];
        packet.extend([*code, u8::try_from(value.len()).expect("cut to fit")]);
        packet.extend(value);
    }
    packet.push(255);
    packet
}

fuzz_target!(|steps: Vec<Step>| {
    let mut now = 0;
    let mut client = Client::new(HARDWARE, 7, now);
    let mut asked = Vec::new();
    // Whether the machine has an address, by what the client has said.
    let mut is_bound = false;
    for step in [Step::Wait].into_iter().chain(steps) {
        let effects = match step {
            Step::Packet(packet) => client.receive(&packet, now),
            Step::Answer {
                kind,
                address,
                server,
                options,
            } => {
                let server = 0x0a00_0202 + u32::from(server % 2);
                let packet = answer(&asked, kind.number(), address.number(), server, &options);
                client.receive(&packet, now)
            }
            Step::Wait => {
                now = now.max(client.next());
                client.tick(now)
            }
            Step::Pass(ms) => {
                now += u64::from(ms);
                client.tick(now)
            }
        };
        assert!(effects.len() <= 2);
        for effect in effects {
            match effect {
                Effect::Send(packet) => {
                    assert!(
                        (240..=576).contains(&packet.len()),
                        "every network carries it"
                    );
                    asked = packet;
                }
                Effect::Bound(lease) => {
                    let address = lease.address;
                    assert!(!address.is_unspecified() && !address.is_multicast());
                    assert!(!address.is_loopback() && !address.is_broadcast());
                    assert!(lease.prefix <= 32 && lease.gateway != Some(address));
                    assert!(lease.nameservers.len() <= 4 && lease.time_servers.len() <= 4);
                    is_bound = true;
                }
                Effect::Lost => {
                    assert!(is_bound, "an address is lost that there was not");
                    is_bound = false;
                }
            }
        }
        assert!(client.next() <= now + LONGEST_MS, "it sleeps for ever");
    }
});
