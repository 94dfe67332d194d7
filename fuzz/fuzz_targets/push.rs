//! A control plane that sends a node arbitrary messages, before the node is admitted and while the
//! node serves; and a node that offers arbitrary versions.
#![no_main]

use casemate_push::bundle::Receiver;
use casemate_push::{
    Cursor, Has, Hello, LogEntry, LogLevel, MAX_FRAME_BYTES, MAX_UNACKED, NodeEnd, NodeEvent,
    NotStored, ObjectKind, Offer, StatementId, StoreId, ToControl, ToNode, VERSIONS, Violation,
    encode,
};
use casemate_trust::id::{Digest, FleetId, TenantId};
use casemate_trust::key::PublicKey;
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;

/// What happens next: a message of the control plane, or something that the node does.
#[derive(Arbitrary, Debug)]
enum Step {
    /// Bytes of the stream, whatever they are.
    Bytes(Vec<u8>),
    /// Bytes as a whole frame.
    Frame(Vec<u8>),
    Admitted,
    Welcome,
    Statement {
        tenant: u8,
        version: u8,
        manifest: bool,
    },
    /// An object, with its digest or with another one.
    Object {
        bytes: Vec<u8>,
        honest: bool,
    },
    Synced(u8),
    Unavailable(u8),
    Lease(Vec<u8>),
    /// The vault has judged the oldest statement.
    Judged {
        accepted: bool,
    },
    FetchObjects(Vec<u8>),
    FetchBundle(u8),
    FetchImage(u8, u32),
    PieceDone,
    BundleDone(u8),
    Log(u16),
    Stored(u8, bool),
    Write(u8),
}

fn tenant(number: u8) -> TenantId {
    TenantId([number; 32])
}

fn digest(number: u8) -> Digest {
    Digest::of(&[number])
}

fn hello() -> Hello {
    Hello {
        protocol: VERSIONS.newest,
        node: "edge-1".parse().expect("a name"),
        node_key: PublicKey::from_bytes([1; 32]),
        fleet: FleetId([2; 32]),
        software: "0.1.0".into(),
        cursor: None,
        has: Has::default(),
    }
}

fn cursor(revision: u8) -> Cursor {
    Cursor {
        store: StoreId([3; 16]),
        revision: revision.into(),
    }
}

fn frame(bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).expect("a short input");
    [&length.to_be_bytes(), bytes].concat()
}

/// The message of a step, as bytes of the stream; `None` if the step is the node's own.
fn said(step: &Step) -> Option<Vec<u8>> {
    Some(match step {
        Step::Bytes(bytes) => bytes.clone(),
        Step::Frame(bytes) => frame(bytes),
        Step::Admitted => encode(&ToNode::Admitted),
        Step::Welcome => encode(&ToNode::Welcome { now: cursor(9) }),
        Step::Statement {
            tenant: number,
            version,
            manifest,
        } => {
            let (tenant, version) = (tenant(*number), (*version).into());
            let id = match manifest {
                true => StatementId::Manifest { tenant, version },
                false => StatementId::Tenant { tenant, version },
            };
            encode(&ToNode::Statement {
                revision: version,
                id,
                bytes: vec![1],
            })
        }
        Step::Object { bytes, honest } => {
            let digest = if *honest {
                Digest::of(bytes)
            } else {
                digest(0)
            };
            let (tenant, kind, bytes) = (tenant(1), ObjectKind::Release, bytes.clone());
            encode(&ToNode::Object {
                tenant,
                digest,
                kind,
                bytes,
            })
        }
        Step::Synced(revision) => encode(&ToNode::Synced {
            now: cursor(*revision),
        }),
        Step::Unavailable(number) => encode(&ToNode::Unavailable {
            digest: digest(*number),
        }),
        Step::Lease(answer) => encode(&ToNode::Lease {
            answer: answer.clone(),
        }),
        _ => return None,
    })
}

/// What a node does of itself. It never asks for more than the protocol lets it.
fn act(node: &mut NodeEnd, step: &Step, waiting: &mut Vec<StatementId>) -> Result<(), Violation> {
    match step {
        Step::Judged { accepted } if !waiting.is_empty() => {
            let id = waiting.remove(0);
            match accepted {
                true => node.ack(&id),
                false => node.nack(&id, "refused", "no"),
            }
        }
        Step::FetchObjects(numbers) => {
            let digests: Vec<_> = numbers.iter().map(|number| digest(*number)).collect();
            node.fetch_objects(tenant(1), &digests)
        }
        Step::FetchBundle(number) => node.fetch_bundle(digest(*number), 0),
        Step::FetchImage(number, bytes) if !node.is_fetching_image() => {
            node.fetch_image(digest(*number), 0, *bytes)
        }
        Step::PieceDone => {
            node.image_piece_done();
            Ok(())
        }
        Step::BundleDone(number) => {
            node.bundle_done(&digest(*number));
            Ok(())
        }
        Step::Log(bytes) => {
            node.log(LogEntry {
                tenant: tenant(1),
                function: "web".parse().expect("a name"),
                request: None,
                level: LogLevel::Info,
                message: "é".repeat((*bytes).into()),
                time_ms: 0,
                failure: None,
            });
            Ok(())
        }
        Step::Stored(number, true) => node.stored(tenant(*number), 1),
        Step::Stored(number, false) => node.not_stored(NotStored {
            tenant: tenant(*number),
            version: 1,
            code: "no_place".into(),
            message: "é".repeat(2000),
        }),
        Step::Write(frames) => {
            for _ in 0..*frames {
                let Some(frame) = node.poll_transmit() else {
                    break;
                };
                let message = postcard::from_bytes::<ToControl>(&frame[4..]);
                message.expect("a frame of ours holds a message");
                assert!(frame.len() <= 4 + MAX_FRAME_BYTES);
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

fuzz_target!(|input: (bool, Vec<Step>)| {
    let (is_member, steps) = input;
    let mut node = match is_member {
        true => NodeEnd::member(hello()),
        false => NodeEnd::joining(vec![1]),
    };
    let mut receiver = Receiver::default();
    let mut waiting = Vec::new();
    for step in steps {
        if let Step::Bytes(piece) = &step {
            let _offer = Offer::decode(piece);
        }
        if let Step::Bytes(piece) = &step
            && receiver.receive(piece).is_ok()
        {
            while let Ok(Some(_)) = receiver.poll() {}
        }
        let Some(bytes) = said(&step) else {
            if act(&mut node, &step, &mut waiting).is_err() {
                return;
            }
            continue;
        };
        if node.receive(&bytes).is_err() {
            return;
        }
        loop {
            match node.poll_event() {
                Ok(Some(NodeEvent::Admitted)) => {
                    node.hello(hello()).expect("it was admitted just now");
                }
                Ok(Some(NodeEvent::Statement { id, .. })) => waiting.push(id),
                Ok(Some(NodeEvent::Object { digest, bytes, .. })) => {
                    assert_eq!(Digest::of(&bytes), digest);
                }
                Ok(Some(NodeEvent::Synced { .. })) => {
                    assert!(waiting.is_empty(), "synced with statements that wait");
                }
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_) => return,
            }
            assert!(waiting.len() <= MAX_UNACKED);
        }
    }
});
