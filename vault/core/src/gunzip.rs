//! Decoding of gzip (RFC 1952) in steps of bounded work.
//!
//! [`Gunzip`] is sans-IO: the caller pushes input and takes output, one [`Gunzip::step`] at a time,
//! and may do other work between two steps. Its memory is a window of 32 KiB, the largest that the
//! format allows, and one piece of output.

use bytes::{Buf as _, Bytes};
use flate2::{Crc, Decompress, FlushDecompress, Status};

/// Most bytes that one step reads.
const STEP_INPUT_BYTES: usize = 16 * 1024;
/// Most bytes that one step produces. Decoding so much takes some ten microseconds.
pub const STEP_OUTPUT_BYTES: usize = 16 * 1024;
/// Most decoded bytes of one answer. More than a function's heap can hold; larger answers can be
/// requested in parts.
pub const MAX_DECODED_BYTES: u64 = 256 << 20;
/// Decoded bytes below which the ratio is not checked: short repetitive answers are common.
pub const FREE_DECODED_BYTES: u64 = 8 << 20;
/// Decoded bytes for each encoded byte beyond [`FREE_DECODED_BYTES`]. The format allows 1032;
/// listings reach about 50.
pub const MAX_RATIO: u64 = 200;
/// Most members of one answer. Block gzip makes one of every 64 KiB, so this is four times what the
/// largest answer needs.
const MAX_MEMBERS: u32 = 16 * 1024;
/// Bytes of one member's header: an extra field of at most 64 KiB, a name and a comment.
const MAX_HEADER_BYTES: usize = 72 * 1024;

/// Identifies a member (RFC 1952, section 2.3.1), and names its only compression method.
const MAGIC: [u8; 3] = [0x1f, 0x8b, 8];
const FLAG_HEADER_CRC: u8 = 1 << 1;
const FLAG_EXTRA: u8 = 1 << 2;
const FLAG_NAME: u8 = 1 << 3;
const FLAG_COMMENT: u8 = 1 << 4;
const FLAGS_RESERVED: u8 = 0xe0;
/// Magic, flags, time, extra flags and operating system.
const FIXED_HEADER_BYTES: usize = 10;
/// Checksum and length.
const TRAILER_BYTES: usize = 8;

/// Why an answer cannot be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GzipError {
    /// The input is not gzip.
    #[error("expected gzip, found bytes that do not begin a gzip member")]
    Header,
    /// The header is too long.
    #[error("expected a gzip header of at most {MAX_HEADER_BYTES} bytes")]
    HeaderLength,
    /// The data is damaged.
    #[error("the gzip data are damaged")]
    Data,
    /// The checksum or length is wrong: the data is damaged or cut.
    #[error("the checksum or the length of a gzip member is wrong")]
    Checksum,
    /// The data is cut off.
    #[error("the gzip data end within a member")]
    Truncated,
    /// There are too many members.
    #[error("expected at most {MAX_MEMBERS} gzip members")]
    Members,
    /// The decoded data is too large.
    #[error("expected at most {MAX_DECODED_BYTES} decoded bytes")]
    TooLarge,
    /// The ratio is too high, as in a bomb.
    #[error(
        "expected at most {MAX_RATIO} decoded bytes for each encoded byte beyond the first \
         {FREE_DECODED_BYTES} decoded bytes"
    )]
    Ratio,
}

/// The optional parts of a header, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum HeaderPart {
    Fixed,
    ExtraLength,
    Extra { left: usize },
    Name,
    Comment,
    HeaderCrc,
}

/// The position of the decoder within a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before a member: the body may end here, unless it is the first member.
    Between,
    Header(HeaderPart),
    Data,
    Trailer,
}

/// Decodes one body. The delivery of an answer owns it and calls [`Gunzip::step`] until it returns
/// false.
pub struct Gunzip {
    state: State,
    inflate: Decompress,
    crc: Crc,
    flags: u8,
    /// The bytes of the fixed part of a header or trailer that have come so far.
    fixed: [u8; FIXED_HEADER_BYTES],
    fixed_length: usize,
    header_bytes: usize,
    members: u32,
    input_bytes: u64,
    output_bytes: u64,
    /// The last step filled its output, so the window may hold more of it.
    output_waits: bool,
}

impl std::fmt::Debug for Gunzip {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            to,
            "Gunzip({:?}, {} bytes made)",
            self.state, self.output_bytes
        )
    }
}

impl Default for Gunzip {
    fn default() -> Self {
        Self::new()
    }
}

impl Gunzip {
    /// Starts before the first byte.
    pub fn new() -> Self {
        Self {
            state: State::Between,
            inflate: Decompress::new(false),
            crc: Crc::new(),
            flags: 0,
            fixed: [0; FIXED_HEADER_BYTES],
            fixed_length: 0,
            header_bytes: 0,
            members: 0,
            input_bytes: 0,
            output_bytes: 0,
            output_waits: false,
        }
    }

    /// Takes bytes from the front of `input` and appends at most [`STEP_OUTPUT_BYTES`] to `output`.
    /// The step ends early at the end of a member. Returns whether there is more to do without more
    /// input: call again then.
    ///
    /// # Errors
    /// See [`GzipError`]; the decoder must not be used any further.
    pub fn step(&mut self, input: &mut Bytes, output: &mut Vec<u8>) -> Result<bool, GzipError> {
        let most = input.len().min(STEP_INPUT_BYTES);
        let start = input.len();
        while self.output_waits || start - input.len() < most {
            match self.state {
                State::Between => self.begin_member()?,
                State::Header(part) => self.header(part, input)?,
                State::Data => {
                    let most = most - (start - input.len());
                    self.data(input, most, output)?;
                    break;
                }
                State::Trailer => {
                    let before = input.len();
                    let complete = self.fixed(input, TRAILER_BYTES);
                    self.input_bytes += (before - input.len()) as u64;
                    if complete {
                        self.end_member()?;
                        break;
                    }
                }
            }
        }
        Ok(self.output_waits || !input.is_empty())
    }

    /// Checks the end of the body. An empty body is complete, because some servers label it so.
    ///
    /// # Errors
    /// The body ended within a member.
    pub fn finish(&self) -> Result<(), GzipError> {
        match self.state {
            State::Between => Ok(()),
            _ => Err(GzipError::Truncated),
        }
    }

    fn begin_member(&mut self) -> Result<(), GzipError> {
        self.members += 1;
        if self.members > MAX_MEMBERS {
            return Err(GzipError::Members);
        }
        if self.members > 1 {
            self.inflate.reset(false);
            self.crc.reset();
        }
        self.header_bytes = 0;
        self.state = State::Header(HeaderPart::Fixed);
        Ok(())
    }

    /// Takes bytes until `length` of them have come in all.
    fn fixed(&mut self, input: &mut Bytes, length: usize) -> bool {
        let count = (length - self.fixed_length).min(input.len());
        input.copy_to_slice(&mut self.fixed[self.fixed_length..][..count]);
        self.fixed_length += count;
        let complete = self.fixed_length == length;
        if complete {
            self.fixed_length = 0;
        }
        complete
    }

    fn header(&mut self, part: HeaderPart, input: &mut Bytes) -> Result<(), GzipError> {
        let before = input.len();
        let next = match part {
            HeaderPart::Fixed => self
                .fixed(input, FIXED_HEADER_BYTES)
                .then_some(HeaderPart::ExtraLength),
            HeaderPart::ExtraLength if self.flags & FLAG_EXTRA == 0 => Some(HeaderPart::Name),
            HeaderPart::ExtraLength => self.fixed(input, 2).then(|| HeaderPart::Extra {
                left: usize::from(u16::from_le_bytes([self.fixed[0], self.fixed[1]])),
            }),
            HeaderPart::Extra { left } => {
                let count = left.min(input.len());
                input.advance(count);
                Some(match left - count {
                    0 => HeaderPart::Name,
                    left => HeaderPart::Extra { left },
                })
            }
            HeaderPart::Name => self.text(FLAG_NAME, input).then_some(HeaderPart::Comment),
            HeaderPart::Comment => self
                .text(FLAG_COMMENT, input)
                .then_some(HeaderPart::HeaderCrc),
            HeaderPart::HeaderCrc => {
                if self.flags & FLAG_HEADER_CRC == 0 || self.fixed(input, 2) {
                    self.state = State::Data;
                }
                None
            }
        };
        if part == HeaderPart::Fixed && next.is_some() {
            self.flags = self.fixed[3];
            if self.fixed[..3] != MAGIC || self.flags & FLAGS_RESERVED != 0 {
                return Err(GzipError::Header);
            }
        }
        self.header_bytes += before - input.len();
        self.input_bytes += (before - input.len()) as u64;
        if self.header_bytes > MAX_HEADER_BYTES {
            return Err(GzipError::HeaderLength);
        }
        if let Some(next) = next {
            self.state = State::Header(next);
        }
        Ok(())
    }

    /// Skips a text that ends with a zero, if there is one; returns whether its end has come.
    fn text(&self, flag: u8, input: &mut Bytes) -> bool {
        if self.flags & flag == 0 {
            return true;
        }
        let end = input.iter().position(|byte| *byte == 0);
        input.advance(end.map_or(input.len(), |end| end + 1));
        end.is_some()
    }

    fn data(
        &mut self,
        input: &mut Bytes,
        most: usize,
        output: &mut Vec<u8>,
    ) -> Result<(), GzipError> {
        let start = output.len();
        output.resize(start + STEP_OUTPUT_BYTES, 0);
        let (read, made) = (self.inflate.total_in(), self.inflate.total_out());
        let result =
            self.inflate
                .decompress(&input[..most], &mut output[start..], FlushDecompress::None);
        let read = (self.inflate.total_in() - read) as usize;
        let made = (self.inflate.total_out() - made) as usize;
        output.truncate(start + made);
        let status = result.map_err(|_| GzipError::Data)?;
        self.crc.update(&output[start..]);
        input.advance(read);
        self.output_bytes += made as u64;
        self.input_bytes += read as u64;
        if self.output_bytes > MAX_DECODED_BYTES {
            return Err(GzipError::TooLarge);
        }
        if self.output_bytes > FREE_DECODED_BYTES + MAX_RATIO * self.input_bytes {
            return Err(GzipError::Ratio);
        }
        let is_over = status == Status::StreamEnd;
        if read == 0 && made == 0 && most > 0 && !is_over {
            return Err(GzipError::Data);
        }
        self.output_waits = made == STEP_OUTPUT_BYTES && !is_over;
        if is_over {
            self.state = State::Trailer;
        }
        Ok(())
    }

    fn end_member(&mut self) -> Result<(), GzipError> {
        let expected = [
            self.crc.sum().to_le_bytes(),
            self.crc.amount().to_le_bytes(),
        ]
        .concat();
        if self.fixed[..TRAILER_BYTES] != expected {
            return Err(GzipError::Checksum);
        }
        self.state = State::Between;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::{Compression, GzBuilder, write::GzEncoder};

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    /// Decodes input in pieces of this size; returns the output, the result, and the number of
    /// steps.
    fn decode(encoded: &[u8], piece: usize) -> (Vec<u8>, Result<(), GzipError>, usize) {
        let (mut gunzip, mut decoded, mut steps) = (Gunzip::new(), Vec::new(), 0);
        for piece in encoded.chunks(piece) {
            let mut input = Bytes::copy_from_slice(piece);
            let mut more = true;
            while more {
                let mut output = Vec::new();
                steps += 1;
                match gunzip.step(&mut input, &mut output) {
                    Ok(again) => more = again,
                    Err(error) => return (decoded, Err(error), steps),
                }
                assert!(output.len() <= STEP_OUTPUT_BYTES);
                decoded.extend_from_slice(&output);
            }
        }
        (decoded, gunzip.finish(), steps)
    }

    #[test]
    fn what_the_window_still_holds_comes_without_more_input() {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder
            .write_all(&vec![b'x'; 3 * STEP_OUTPUT_BYTES])
            .unwrap();
        encoder.flush().unwrap();
        let flushed = encoder.get_ref().clone();
        let (decoded, ended, _) = decode(&flushed, flushed.len());
        assert_eq!(decoded.len(), 3 * STEP_OUTPUT_BYTES);
        assert_eq!(ended, Err(GzipError::Truncated), "the body is not complete");
    }

    #[test]
    fn members_with_every_part_of_a_header_decode_however_they_are_cut() {
        let text = b"the quick brown fox ".repeat(3000);
        let mut full = GzBuilder::new()
            .filename("name")
            .comment("comment")
            .extra(vec![7; 300])
            .write(Vec::new(), Compression::fast());
        full.write_all(&text).unwrap();
        let body = [full.finish().unwrap(), gzip(b""), gzip(b"end")].concat();
        let whole = [text.as_slice(), b"end"].concat();
        for piece in [1, 2, 7, 1000, body.len()] {
            let (decoded, ended, _) = decode(&body, piece);
            assert!(decoded == whole && ended.is_ok(), "{piece}: {ended:?}");
        }
    }

    #[test]
    fn a_header_with_a_checksum_of_its_own_is_read() {
        let mut body = gzip(b"x");
        body[3] = FLAG_HEADER_CRC;
        body.splice(10..10, [1, 2]);
        assert_eq!(decode(&body, 3).0, b"x");
    }

    #[test]
    fn damaged_truncated_or_trailing_data_is_refused() {
        let good = gzip(b"some text that is long enough to be cut");
        let mut wrong_sum = good.clone();
        let last = good.len() - 8;
        wrong_sum[last] ^= 1;
        let mut reserved = good.clone();
        reserved[3] = 0x80;
        let cases = [
            (good[..good.len() - 1].to_vec(), GzipError::Truncated),
            (good[..5].to_vec(), GzipError::Truncated),
            (
                [&good[..], b"garbage that is no member"].concat(),
                GzipError::Header,
            ),
            (wrong_sum, GzipError::Checksum),
            (reserved, GzipError::Header),
            ([&good[..10], &[0xff; 40]].concat(), GzipError::Data),
            (b"{\"plain\": true}".to_vec(), GzipError::Header),
        ];
        for (body, expected) in cases {
            for piece in [1, body.len()] {
                assert_eq!(decode(&body, piece).1, Err(expected), "{body:?}");
            }
        }
        assert_eq!(decode(b"", 1).1, Ok(()));
    }

    #[test]
    fn bombs_of_every_kind_end_within_their_budget() {
        let ratio = gzip(&vec![0; 10 << 20]);
        assert!(ratio.len() < 12_000, "the test needs a bomb");
        let (decoded, ended, _) = decode(&ratio, ratio.len());
        assert_eq!(ended, Err(GzipError::Ratio));
        assert!(decoded.len() as u64 <= FREE_DECODED_BYTES + MAX_RATIO * ratio.len() as u64);

        let members = gzip(b"").repeat(MAX_MEMBERS as usize + 1);
        let (decoded, ended, steps) = decode(&members, members.len());
        assert_eq!((decoded.len(), ended), (0, Err(GzipError::Members)));
        assert!(steps >= MAX_MEMBERS as usize, "each member takes a step");

        let name = [
            &[0x1f, 0x8b, 8, FLAG_NAME, 0, 0, 0, 0, 0, 0][..],
            &[b'n'; 100_000],
        ]
        .concat();
        assert_eq!(decode(&name, 4096).1, Err(GzipError::HeaderLength));

        // Any number of empty stored blocks produces no output: each step still ends after its
        // input.
        let empty_block = [0, 0, 0, 0xff, 0xff];
        let blocks = [&gzip(b"")[..10], &empty_block.repeat(200_000)].concat();
        let (decoded, ended, steps) = decode(&blocks, blocks.len());
        assert_eq!((decoded.len(), ended), (0, Err(GzipError::Truncated)));
        assert!(steps >= blocks.len() / STEP_INPUT_BYTES);

        let nested = gzip(&gzip(&[0; 1000]));
        assert_eq!(
            decode(&nested, 100).0,
            gzip(&[0; 1000]),
            "one layer is undone, not two"
        );
    }
}
