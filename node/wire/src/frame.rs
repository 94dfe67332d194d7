//! Frames: twelve bytes of header, then the payload.
//!
//! ```text
//! 0       4        8      9       10         12
//! | length | stream | kind | flags | zero (2) | payload ...
//! ```
//! Integers are little-endian: both ends are the same machine.

/// Length of a frame's header, bytes.
pub const HEADER_BYTES: usize = 12;
/// Largest payload, bytes: a head with all its fields, or a piece of a body.
pub const MAX_PAYLOAD_BYTES: usize = 64 * 1024;
/// On heads: no body follows in this direction.
pub const FLAG_END: u8 = 1;
/// On pings: this is the answer to one.
pub const FLAG_ACK: u8 = 2;
/// On heads of requests: only the beginning of the body is sent before the other end asks for the
/// rest.
pub const FLAG_ASK: u8 = 4;

/// The id of a stream in this channel; never reused.
pub type StreamId = u32;

/// The kind of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Begins one direction of a stream.
    Head = 1,
    /// A piece of a body, which costs credit.
    Data = 2,
    /// Ends one direction, with trailers.
    End = 3,
    /// Ends both directions at once, with a code.
    Reset = 4,
    /// Gives credit, for a stream or, on stream 0, for the channel.
    Window = 5,
    /// Asks the other end for a sign of life.
    Ping = 6,
    /// No new streams; the payload is the last stream that was begun, and those above it are over.
    GoAway = 7,
    /// A control message; only on control channels.
    Control = 8,
}

/// A frame's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Payload, bytes.
    pub length: u32,
    /// Stream, 0 for the channel itself.
    pub stream: u32,
    /// Kind.
    pub kind: Kind,
    /// Flags of that kind.
    pub flags: u8,
}

/// Why a frame was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The kind does not exist.
    #[error("expected a frame kind from 1 to 8, got {0}")]
    Kind(u8),
    /// The payload is too long.
    #[error("expected a payload of at most {MAX_PAYLOAD_BYTES} bytes, got {0}")]
    Length(u32),
    /// Reserved bits are set.
    #[error("expected zeros in the reserved bytes")]
    Reserved,
    /// A control packet does not hold exactly one frame.
    #[error("expected one control frame in the packet")]
    Packet,
}

impl Header {
    /// Parses the first [`HEADER_BYTES`] of a frame.
    pub fn parse(bytes: &[u8; HEADER_BYTES]) -> Result<Self, FrameError> {
        let [l0, l1, l2, l3, s0, s1, s2, s3, kind, flags, z0, z1] = *bytes;
        let kind = match kind {
            1 => Kind::Head,
            2 => Kind::Data,
            3 => Kind::End,
            4 => Kind::Reset,
            5 => Kind::Window,
            6 => Kind::Ping,
            7 => Kind::GoAway,
            8 => Kind::Control,
            other => return Err(FrameError::Kind(other)),
        };
        let header = Self {
            length: u32::from_le_bytes([l0, l1, l2, l3]),
            stream: u32::from_le_bytes([s0, s1, s2, s3]),
            kind,
            flags,
        };
        if header.length as usize > MAX_PAYLOAD_BYTES {
            return Err(FrameError::Length(header.length));
        }
        if z0 | z1 != 0 || flags & !(FLAG_END | FLAG_ACK | FLAG_ASK) != 0 {
            return Err(FrameError::Reserved);
        }
        Ok(header)
    }

    /// Encodes the header.
    pub fn bytes(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..4].copy_from_slice(&self.length.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.stream.to_le_bytes());
        bytes[8] = self.kind as u8;
        bytes[9] = self.flags;
        bytes
    }
}

/// Appends a frame. The payload must be within [`MAX_PAYLOAD_BYTES`].
pub(crate) fn write(out: &mut Vec<u8>, kind: Kind, flags: u8, stream: u32, payload: &[u8]) {
    assert!(
        payload.len() <= MAX_PAYLOAD_BYTES,
        "a payload over its bound"
    );
    out.extend_from_slice(
        &Header {
            length: payload.len() as u32,
            stream,
            kind,
            flags,
        }
        .bytes(),
    );
    out.extend_from_slice(payload);
}

/// Appends a frame whose payload, within the same bound, is written in place; on failure appends
/// nothing.
pub(crate) fn write_with<E>(
    out: &mut Vec<u8>,
    kind: Kind,
    flags: u8,
    stream: u32,
    payload: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
) -> Result<(), E> {
    let start = out.len();
    write(out, kind, flags, stream, &[]);
    let written = payload(out);
    if written.is_ok() {
        let length = (out.len() - start - HEADER_BYTES) as u32;
        assert!(
            length as usize <= MAX_PAYLOAD_BYTES,
            "a payload over its bound"
        );
        out[start..start + 4].copy_from_slice(&length.to_le_bytes());
    } else {
        out.truncate(start);
    }
    written
}

/// Makes a packet of a control channel with this `payload`.
pub fn control_packet(payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::with_capacity(HEADER_BYTES + payload.len());
    write(&mut packet, Kind::Control, 0, 0, payload);
    packet
}

/// Extracts the payload of a control packet.
pub fn control_payload(packet: &[u8]) -> Result<&[u8], FrameError> {
    let (header, payload) = packet.split_first_chunk().ok_or(FrameError::Packet)?;
    let header = Header::parse(header)?;
    let whole = header.length as usize == payload.len();
    if header.kind == Kind::Control && header.stream == 0 && header.flags == 0 && whole {
        Ok(payload)
    } else {
        Err(FrameError::Packet)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_header_that_parses_writes_itself(bytes: [u8; HEADER_BYTES]) {
            if let Ok(header) = Header::parse(&bytes) {
                prop_assert_eq!(header.bytes(), bytes);
            }
        }

        #[test]
        fn control_packets_round_trip(payload in proptest::collection::vec(any::<u8>(), 0..2000), cut in 1usize..40) {
            let packet = control_packet(&payload);
            prop_assert_eq!(control_payload(&packet).unwrap(), &payload[..]);
            prop_assert!(control_payload(&packet[..packet.len().saturating_sub(cut)]).is_err());
            let longer = [&packet[..], b"x"].concat();
            prop_assert!(control_payload(&longer).is_err());
        }
    }

    #[test]
    fn a_gibibyte_is_refused_before_it_is_read() {
        let mut bytes = Header {
            length: 0,
            stream: 1,
            kind: Kind::Data,
            flags: 0,
        }
        .bytes();
        bytes[0..4].copy_from_slice(&(1u32 << 30).to_le_bytes());
        assert_eq!(Header::parse(&bytes), Err(FrameError::Length(1 << 30)));
    }
}
