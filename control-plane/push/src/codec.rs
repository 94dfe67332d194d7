//! Frames: a big-endian `u32` length, then one postcard message.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::bounds::Bounded;
use crate::message::MAX_FRAME_BYTES;

/// Bytes in front of a message.
const LENGTH_BYTES: usize = 4;

/// The other end broke the protocol, or exceeded a bound on what we hold for it. The connection
/// must be closed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A frame exceeds its bound.
    #[error("expected a frame of at most {MAX_FRAME_BYTES} bytes, got {0}")]
    FrameTooLarge(usize),
    /// A frame holds no message.
    #[error("the frame holds no message")]
    Format,
    /// A message exceeds a bound.
    #[error("{0} over its bound")]
    TooLarge(&'static str),
    /// A message came at the wrong time.
    #[error("{0} came when it was not expected")]
    Unexpected(&'static str),
    /// More is under way than allowed.
    #[error("more {0} than may be under way")]
    Flood(&'static str),
    /// An object or bundle does not have its digest.
    #[error("bytes with another digest than announced")]
    Digest,
    /// The hello names another protocol version than the handshake.
    #[error("expected push protocol {ours}, which the handshake agreed on, got {theirs}")]
    Protocol {
        /// The version of the handshake.
        ours: u16,
        /// The version in the hello.
        theirs: u16,
    },
    /// No node has this key.
    #[error("no node has this key: it was revoked, or joined another control plane")]
    Unknown,
    /// The hello names another node.
    #[error("the hello names another node, key or fleet than the connection's")]
    Identity,
}

impl Violation {
    /// Application error code for the close of the QUIC connection.
    pub const fn close_code(&self) -> u32 {
        match self {
            Self::FrameTooLarge(_) => 16,
            Self::Format => 17,
            Self::TooLarge(_) => 18,
            Self::Unexpected(_) => 19,
            Self::Flood(_) => 20,
            Self::Digest => 21,
            Self::Protocol { .. } => 22,
            Self::Identity => 23,
            Self::Unknown => 24,
        }
    }
}

/// Encodes a frame.
pub fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    let start = vec![0; LENGTH_BYTES];
    let mut bytes = postcard::to_extend(message, start).expect("plain data has an encoding");
    let length = bytes.len() - LENGTH_BYTES;
    let length = u32::try_from(length).expect("messages are far below 4 GiB");
    bytes[..LENGTH_BYTES].copy_from_slice(&length.to_be_bytes());
    bytes
}

/// Assembles frames.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    bytes: Vec<u8>,
    start: usize,
}

impl Decoder {
    /// Takes the bytes that were read. The caller drains frames before it reads on, so more than
    /// two frames is the caller's mistake and is reported as a flood.
    pub(crate) fn receive(&mut self, chunk: &[u8]) -> Result<(), Violation> {
        if self.start > 0 {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        if self.bytes.len() + chunk.len() > 2 * (MAX_FRAME_BYTES + LENGTH_BYTES) {
            return Err(Violation::Flood("bytes"));
        }
        self.bytes.extend_from_slice(chunk);
        Ok(())
    }

    /// The next whole message.
    pub(crate) fn next<T: DeserializeOwned + Bounded>(&mut self) -> Result<Option<T>, Violation> {
        let Some((length, rest)) = self.bytes[self.start..].split_first_chunk::<LENGTH_BYTES>()
        else {
            return Ok(None);
        };
        let length = u32::from_be_bytes(*length) as usize;
        if length > MAX_FRAME_BYTES {
            return Err(Violation::FrameTooLarge(length));
        }
        let Some(frame) = rest.get(..length) else {
            return Ok(None);
        };
        let (message, left) =
            postcard::take_from_bytes::<T>(frame).map_err(|_| Violation::Format)?;
        if !left.is_empty() {
            return Err(Violation::Format);
        }
        self.start += LENGTH_BYTES + length;
        message
            .flaw()
            .map_or(Ok(Some(message)), |what| Err(Violation::TooLarge(what)))
    }

    /// The bytes that are not part of a frame yet.
    pub(crate) fn rest(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    /// Skips a first frame that is not a message.
    pub(crate) fn skip(&mut self, bytes: usize) {
        self.start += bytes;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::message::{LogEntry, LogLevel, MAX_LOG_BYTES, MAX_STATUS_BYTES, ToControl, ToNode};

    #[test]
    fn frames_come_together_from_single_bytes() {
        let messages = [
            ToNode::JoinPending,
            ToNode::Admitted,
            ToNode::Lease {
                answer: vec![7; 300],
            },
        ];
        let bytes: Vec<u8> = messages.iter().flat_map(encode).collect();
        let (mut decoder, mut got) = (Decoder::default(), Vec::new());
        for byte in bytes {
            decoder.receive(&[byte]).unwrap();
            got.extend(decoder.next::<ToNode>().unwrap());
        }
        assert_eq!(got, messages);
    }

    #[test]
    fn a_huge_length_is_refused_before_anything_is_kept() {
        let mut decoder = Decoder::default();
        decoder.receive(&u32::MAX.to_be_bytes()).unwrap();
        assert_eq!(
            decoder.next::<ToNode>(),
            Err(Violation::FrameTooLarge(u32::MAX as usize))
        );
    }

    #[test]
    fn a_caller_that_does_not_drain_frames_is_stopped() {
        let mut decoder = Decoder::default();
        let chunk = vec![0; 1 << 20];
        let taken = (0..64)
            .take_while(|_| decoder.receive(&chunk).is_ok())
            .count();
        assert!(taken <= 8);
    }

    #[test]
    fn bytes_after_a_message_are_refused() {
        let mut frame = encode(&ToNode::Admitted);
        frame.push(0);
        frame[3] += 1;
        let mut decoder = Decoder::default();
        decoder.receive(&frame).unwrap();
        assert_eq!(decoder.next::<ToNode>(), Err(Violation::Format));
    }

    #[test]
    fn bounds_inside_messages_hold() {
        let entry = LogEntry {
            tenant: casemate_trust::id::TenantId([1; 32]),
            function: "web".parse().unwrap(),
            request: None,
            level: LogLevel::Info,
            message: "x".repeat(MAX_LOG_BYTES + 1),
            time_ms: 0,
            failure: None,
        };
        let messages = [
            ToControl::Status {
                json: "x".repeat(MAX_STATUS_BYTES + 1),
            },
            ToControl::Logs {
                entries: vec![entry],
                lost: 0,
            },
        ];
        for message in messages {
            let mut decoder = Decoder::default();
            decoder.receive(&encode(&message)).unwrap();
            assert!(matches!(
                decoder.next::<ToControl>(),
                Err(Violation::TooLarge(_))
            ));
        }
    }

    proptest! {
        #[test]
        fn garbage_is_an_error_or_nothing(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let mut decoder = Decoder::default();
            decoder.receive(&bytes).unwrap();
            while let Ok(Some(_)) = decoder.next::<ToControl>() {}
            let framed = [&(bytes.len() as u32).to_be_bytes()[..], &bytes].concat();
            for _ in 0..2 {
                let mut decoder = Decoder::default();
                decoder.receive(&framed).unwrap();
                while let Ok(Some(_)) = decoder.next::<ToNode>() {}
            }
        }
    }
}
