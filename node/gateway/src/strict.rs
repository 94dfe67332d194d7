//! Checks a caller's bytes before an HTTP parser sees them. Uses no socket and no clock.
//!
//! On HTTP/1 the scanner follows the framing of requests and refuses every framing that two
//! programs could read in two ways: `Content-Length` beside `Transfer-Encoding`, a second
//! `Content-Length`, transfer codings other than `chunked`, line feeds without carriage return,
//! folded lines, chunk sizes that are not plain hexadecimal numbers. The parser behind it is laxer;
//! because only one reading is left, both agree where each request ends.
//!
//! After a refusal the parser gets none of the caller's further bytes. Instead it gets a few bytes
//! that it refuses with 400 by itself ([`Scanner::refusal`]), in the order of the requests on the
//! connection, and then the end of the stream.
//!
//! On HTTP/2 it counts frames: see [`crate::frames`].

use crate::fields::MAX_HEAD_BYTES;
use crate::frames::{Flood, Frames};

/// The first bytes of an HTTP/2 connection (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Longest line with the size of a chunk and its extensions, bytes. Extensions have no meaning
/// here.
const MAX_SIZE_LINE_BYTES: usize = 256;
/// Most digits of a chunk's size, which allow more than any permitted body.
const MAX_SIZE_DIGITS: usize = 15;
/// Most digits of a `Content-Length`: 19 digits always fit into 64 bits.
const MAX_LENGTH_DIGITS: usize = 19;

/// Follows the framing of one connection.
#[derive(Debug)]
pub struct Scanner {
    state: State,
    /// The beginning of the current line, from earlier pieces.
    line: Vec<u8>,
    head: Head,
    heads: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// This many bytes of the HTTP/2 preface have arrived.
    Preface(usize),
    /// Before the request line.
    Start,
    /// In the lines of a head after the first.
    Fields,
    /// In a body; the number of bytes still to come.
    Body(u64),
    ChunkSize,
    ChunkData(u64),
    /// After the data of a chunk: the bytes that must follow.
    ChunkEnd(&'static [u8]),
    Trailers,
    Http2,
    /// Refused: the bytes for the parser.
    Refused(&'static [u8]),
}

/// A character that is invalid in every head, and the end of the head, because the parser checks a
/// head when it is whole.
const BAD_HEAD: &[u8] = b"\0\r\n\r\n";
/// Within a chunk, its extensions or its trailers, a carriage return without a line feed is always
/// invalid.
const BAD_CHUNK: &[u8] = b"\r\0";

/// What the lines of a head declare about the framing.
#[derive(Debug, Clone, Copy, Default)]
struct Head {
    is_http10: bool,
    length: Option<u64>,
    chunked: bool,
}

/// The bytes have two readings, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ambiguous;

impl Default for Scanner {
    fn default() -> Self {
        Self {
            state: State::Preface(0),
            line: Vec::new(),
            head: Head::default(),
            heads: 0,
        }
    }
}

impl Scanner {
    /// Checks the next bytes; returns how many of them the parser may have. `frames`: the budget
    /// when the connection is HTTP/2.
    ///
    /// # Errors
    /// The caller floods the connection with frames; it must be closed.
    pub fn scan(&mut self, bytes: &[u8], frames: &mut Frames) -> Result<usize, Flood> {
        let mut at = 0;
        while at < bytes.len() {
            if self.state == State::Http2 {
                frames.count(&bytes[at..])?;
                return Ok(bytes.len());
            }
            match self.step(&bytes[at..]) {
                Ok(used) => at += used,
                Err((used, Ambiguous)) => {
                    self.state = State::Refused(match self.state {
                        State::Preface(_) | State::Start | State::Fields => BAD_HEAD,
                        _ => BAD_CHUNK,
                    });
                    return Ok(at + used);
                }
            }
            if matches!(self.state, State::Refused(_)) {
                break;
            }
        }
        Ok(at)
    }

    /// The next bytes for the parser of a refused stream, at most `room`; an empty slice is the
    /// end. `None`: nothing is refused.
    pub fn refusal(&mut self, room: usize) -> Option<&'static [u8]> {
        let State::Refused(left) = &mut self.state else {
            return None;
        };
        let (now, later) = left.split_at(room.min(left.len()));
        *left = later;
        Some(now)
    }

    /// Number of whole heads so far on an HTTP/1 connection.
    pub fn heads(&self) -> u32 {
        self.heads
    }

    /// Whether an HTTP/1 request is complete and the next has not begun.
    pub fn is_between_requests(&self) -> bool {
        self.state == State::Start && self.line.is_empty() && self.heads > 0
    }

    /// Whether an HTTP/1 request has begun and is not complete, or was refused.
    pub fn is_within_request(&self) -> bool {
        match self.state {
            State::Preface(_) | State::Http2 => false,
            State::Start => !self.line.is_empty(),
            _ => true,
        }
    }

    /// Whether the last request was HTTP/1.1, where a server may send an interim response.
    pub fn is_http11(&self) -> bool {
        self.heads > 0 && !self.head.is_http10
    }

    /// Consumes some bytes; on an error, the offending byte is the one after those.
    fn step(&mut self, bytes: &[u8]) -> Result<usize, (usize, Ambiguous)> {
        match self.state {
            State::Preface(matched) => {
                if bytes[0] == PREFACE[matched] {
                    self.state = match matched + 1 {
                        whole if whole == PREFACE.len() => State::Http2,
                        matched => State::Preface(matched),
                    };
                    return Ok(1);
                }
                // The bytes that matched the preface so far were the beginning of a request.
                self.state = State::Start;
                let mut seen = &PREFACE[..matched];
                while !seen.is_empty() {
                    let used = self.lines(seen).map_err(|(_, error)| (0, error))?;
                    seen = &seen[used..];
                }
                Ok(0)
            }
            State::Start | State::Fields | State::ChunkSize | State::Trailers => self.lines(bytes),
            State::Body(left) => {
                let (used, left) = skip(bytes, left);
                self.state = if left > 0 {
                    State::Body(left)
                } else {
                    State::Start
                };
                Ok(used)
            }
            State::ChunkData(left) => {
                let (used, left) = skip(bytes, left);
                self.state = if left > 0 {
                    State::ChunkData(left)
                } else {
                    State::ChunkEnd(b"\r\n")
                };
                Ok(used)
            }
            State::ChunkEnd(expected) => match expected {
                [first, rest @ ..] if *first == bytes[0] => {
                    self.state = if rest.is_empty() {
                        State::ChunkSize
                    } else {
                        State::ChunkEnd(rest)
                    };
                    Ok(1)
                }
                _ => Err((0, Ambiguous)),
            },
            State::Http2 => Ok(bytes.len()),
            State::Refused(_) => Ok(0),
        }
    }

    /// Consumes the next line, or its beginning.
    fn lines(&mut self, bytes: &[u8]) -> Result<usize, (usize, Ambiguous)> {
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let piece = end.map_or(bytes, |end| &bytes[..=end]);
        let most = match self.state {
            State::ChunkSize => MAX_SIZE_LINE_BYTES,
            // The parser, which bounds the whole head, has refused it before.
            _ => 2 * MAX_HEAD_BYTES,
        };
        if self.line.len() + piece.len() > most {
            return Err((0, Ambiguous));
        }
        let Some(end) = end else {
            self.line.extend_from_slice(piece);
            return Ok(bytes.len());
        };
        let taken = if self.line.is_empty() {
            self.take_line(piece)
        } else {
            let mut line = std::mem::take(&mut self.line);
            line.extend_from_slice(piece);
            let taken = self.take_line(&line);
            line.clear();
            self.line = line;
            taken
        };
        taken.map_err(|error| (end, error))?;
        Ok(end + 1)
    }

    fn take_line(&mut self, line: &[u8]) -> Result<(), Ambiguous> {
        let line = line.strip_suffix(b"\r\n").ok_or(Ambiguous)?;
        if line.iter().any(|byte| matches!(byte, b'\r' | 0)) {
            return Err(Ambiguous);
        }
        self.state = match self.state {
            // Empty lines before a request are permitted (RFC 9112, section 2.2).
            State::Start if line.is_empty() => State::Start,
            State::Start => {
                self.head = Head::of_request_line(line)?;
                State::Fields
            }
            State::Fields if line.is_empty() => {
                self.heads = self.heads.wrapping_add(1);
                match (self.head.chunked, self.head.length) {
                    (true, _) => State::ChunkSize,
                    (false, None | Some(0)) => State::Start,
                    (false, Some(length)) => State::Body(length),
                }
            }
            State::Fields => {
                self.head.field(line)?;
                State::Fields
            }
            State::ChunkSize => match chunk_size(line)? {
                0 => State::Trailers,
                size => State::ChunkData(size),
            },
            State::Trailers if line.is_empty() => State::Start,
            State::Trailers => {
                split_field(line)?;
                State::Trailers
            }
            other => other,
        };
        Ok(())
    }
}

impl Head {
    fn of_request_line(line: &[u8]) -> Result<Self, Ambiguous> {
        let mut words = line.split(|byte| *byte == b' ');
        let (Some(_), Some(target), Some(version), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(Ambiguous);
        };
        // A fragment is never sent (RFC 9112, section 3.2); the parser would remove it silently.
        if target.contains(&b'#') {
            return Err(Ambiguous);
        }
        let is_http10 = match version {
            b"HTTP/1.1" => false,
            b"HTTP/1.0" => true,
            _ => return Err(Ambiguous),
        };
        Ok(Self {
            is_http10,
            ..Self::default()
        })
    }

    fn field(&mut self, line: &[u8]) -> Result<(), Ambiguous> {
        let (name, value) = split_field(line)?;
        if name.eq_ignore_ascii_case(b"content-length") {
            let plain = (1..=MAX_LENGTH_DIGITS).contains(&value.len())
                && value.iter().all(u8::is_ascii_digit);
            if !plain || self.length.is_some() || self.chunked {
                return Err(Ambiguous);
            }
            let digits = value.iter().map(|digit| u64::from(digit - b'0'));
            self.length = Some(digits.fold(0, |length, digit| length * 10 + digit));
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            let is_chunked = value.eq_ignore_ascii_case(b"chunked");
            if !is_chunked || self.chunked || self.length.is_some() || self.is_http10 {
                return Err(Ambiguous);
            }
            self.chunked = true;
        }
        Ok(())
    }
}

/// Splits a line into name and value. A folded line, and a space before the colon, give an invalid
/// name.
fn split_field(line: &[u8]) -> Result<(&[u8], &[u8]), Ambiguous> {
    let colon = line
        .iter()
        .position(|byte| *byte == b':')
        .ok_or(Ambiguous)?;
    let name = &line[..colon];
    let is_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    if name.is_empty() || !name.iter().all(is_token) {
        return Err(Ambiguous);
    }
    Ok((name, line[colon + 1..].trim_ascii()))
}

fn chunk_size(line: &[u8]) -> Result<u64, Ambiguous> {
    let size = line.split(|byte| *byte == b';').next().unwrap_or(line);
    if !(1..=MAX_SIZE_DIGITS).contains(&size.len()) || !size.iter().all(u8::is_ascii_hexdigit) {
        return Err(Ambiguous);
    }
    let text = std::str::from_utf8(size).map_err(|_| Ambiguous)?;
    u64::from_str_radix(text, 16).map_err(|_| Ambiguous)
}

fn skip(bytes: &[u8], left: u64) -> (usize, u64) {
    let used = usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
    (used, left - used as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The bytes that the parser gets, the number of complete heads, and the scanner.
    fn scan(bytes: &[u8], piece: usize) -> (Vec<u8>, u32, Scanner) {
        let (mut scanner, mut frames) = (Scanner::default(), Frames::new(0));
        let mut out = Vec::new();
        for piece in bytes.chunks(piece) {
            if scanner.refusal(0).is_none() {
                let passed = scanner.scan(piece, &mut frames).unwrap();
                out.extend_from_slice(&piece[..passed]);
            }
        }
        let heads = scanner.heads();
        (out, heads, scanner)
    }

    #[test]
    fn requests_pass_as_they_are_in_pieces_of_every_size() {
        let requests = "\r\nGET / HTTP/1.1\r\nHost: a.test\r\nX: \ta ä\r\n\r\n\
             POST /x HTTP/1.1\r\nContent-Length: 7\r\n\r\nab\n\r\ncd\
             POST / HTTP/1.1\r\nTransfer-Encoding:  Chunked \r\n\r\n\
             3\r\na\nb\r\nA;x=\"1\"\r\n0123456789\r\n0\r\nChecksum: 1\r\n\r\n\
             PUT / HTTP/1.0\r\ncontent-length: 00\r\n\r\nPRI * HTTP/1.1\r\n\r\n";
        for piece in 1..=requests.len() {
            let (out, heads, scanner) = scan(requests.as_bytes(), piece);
            assert_eq!((out.as_slice(), heads), (requests.as_bytes(), 5));
            assert!(scanner.is_between_requests());
        }
    }

    #[test]
    fn a_request_that_has_two_readings_is_refused_where_it_turns_ambiguous() {
        let refused = [
            "GET / HTTP/1.1\nHost: a.test\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a.test\n\r\n",
            "GET / HTTP/1.1\r\nHost: a.test\r\n\n",
            "\nGET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nX: a\rb\r\n\r\n",
            "GET / HTTP/1.1\r\nX: a\0b\r\n\r\n",
            "GET / HTTP/1.1\r\n folded: 1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost : a.test\r\n\r\n",
            "GET / HTTP/1.1\r\nHost\r\n\r\n",
            "GET / HTTP/1.1\r\n: a\r\n\r\n",
            "GET  / HTTP/1.1\r\n\r\n",
            "GET /\tx HTTP/1.2\r\n\r\n",
            "GET /\r\n\r\n",
            "GET /#x HTTP/1.1\r\n\r\n",
            "PRI * HTTP/2.0\r\n\r\nXX",
            "POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 3, 3\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: -3\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length:\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: identity\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: \x0bchunked\r\n\r\n",
            "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
        ];
        let bodies = [
            "3\nabc\r\n",
            "3 \r\nabc\r\n",
            "0x3\r\nabc\r\n",
            "\r\n",
            "g\r\n",
            "+3\r\nabc\r\n",
            "3\r\nabcd\r\n",
            "3\r\nabc\n",
            "3\r\nabc\rx",
            "3;a\nb\r\n",
            "0\r\nA: b\n\r\n",
            "0\r\nA : b\r\n\r\n",
            "0\r\n\n",
            "1000000000000000\r\n",
            "3\r\nabc\r\n\r\n",
        ];
        let head = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
        let bodies = bodies.map(|body| format!("{head}{body}"));
        let all = refused.into_iter().chain(bodies.iter().map(String::as_str));
        for request in all {
            let follows = format!("{request}GET /smuggled HTTP/1.1\r\n\r\n");
            for piece in [1, 7, 4096] {
                let (out, heads, mut scanner) = scan(follows.as_bytes(), piece);
                assert!(out.len() < request.len(), "{request:?}");
                assert_eq!(out, &follows.as_bytes()[..out.len()]);
                let refusal = [scanner.refusal(1), scanner.refusal(9), scanner.refusal(9)];
                let expected = if heads == 0 { BAD_HEAD } else { BAD_CHUNK };
                assert_eq!(
                    refusal.map(Option::unwrap).concat(),
                    expected,
                    "{request:?}"
                );
                assert_eq!(heads, u32::from(request.starts_with(head)), "{request:?}");
                assert!(!scanner.is_between_requests());
            }
        }
    }

    #[test]
    fn a_line_without_end_takes_no_memory_without_end() {
        let (out, _, scanner) = scan(&vec![b'a'; 1 << 20], 4096);
        assert!(out.len() <= 2 * MAX_HEAD_BYTES);
        assert!(matches!(scanner.state, State::Refused(BAD_HEAD)));
        assert!(scanner.line.capacity() <= 4 * MAX_HEAD_BYTES);
        let chunked = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;";
        let (out, ..) = scan(&[&chunked[..], &[b'x'; 1 << 16]].concat(), 100);
        assert!(out.len() <= chunked.len() + MAX_SIZE_LINE_BYTES);
    }

    proptest! {
        /// However bytes are cut into pieces, the parser gets the same bytes, and none after a
        /// refusal.
        #[test]
        fn pieces_make_no_difference(
            bytes in "(GET / HTTP/1.1\r\n|POST / HTTP/1.0\r\n|Content-Length: 3\r\n\
                |Transfer-Encoding: chunked\r\n|\r\n|\n|3|0|abc|:| ){0,20}",
            piece in 1usize..20,
        ) {
            let (whole, heads, _) = scan(bytes.as_bytes(), usize::MAX);
            let (parts, heads_of_parts, _) = scan(bytes.as_bytes(), piece);
            prop_assert_eq!(heads, heads_of_parts);
            prop_assert_eq!(&whole, &parts);
            prop_assert_eq!(&whole, &bytes.as_bytes()[..whole.len()]);
        }
    }
}
