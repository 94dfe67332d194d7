//! Bundles on their unidirectional streams: a header, then the bytes from the requested offset to
//! the end. Pieces of an image are sent in the same way; a piece's header contains the end of the
//! piece.
//!
//! The node hashes what it assembles and discards a result with another digest; the beginning from
//! a cut stream is kept for the next fetch.

use casemate_trust::id::Digest;
use casemate_trust::image::MAX_IMAGE_BYTES;
use casemate_trust::release::MAX_BUNDLE_BYTES;

use crate::codec::{Decoder, Violation};

/// Bytes of a header: digest, offset, total.
pub const HEADER_BYTES: usize = 32 + 8 + 8;

/// The header of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The bundle.
    pub digest: Digest,
    /// Offset of the stream's first byte.
    pub offset: u64,
    /// Offset of its end; for a bundle, always the bundle's size, bytes.
    pub total: u64,
}

impl Header {
    /// Encodes the header, numbers big-endian.
    pub fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..32].copy_from_slice(&self.digest.0);
        bytes[32..40].copy_from_slice(&self.offset.to_be_bytes());
        bytes[40..].copy_from_slice(&self.total.to_be_bytes());
        bytes
    }

    /// Decodes a header.
    ///
    /// # Errors
    /// The bundle is too large, the end exceeds every image, or the offset is beyond the end.
    pub fn parse(bytes: &[u8; HEADER_BYTES]) -> Result<Self, Violation> {
        let (mut digest, mut offset, mut total) = ([0; 32], [0; 8], [0; 8]);
        digest.copy_from_slice(&bytes[..32]);
        offset.copy_from_slice(&bytes[32..40]);
        total.copy_from_slice(&bytes[40..]);
        let (offset, total) = (u64::from_be_bytes(offset), u64::from_be_bytes(total));
        if total > MAX_IMAGE_BYTES || offset > total || total - offset > MAX_BUNDLE_BYTES {
            return Err(Violation::TooLarge("bundle"));
        }
        Ok(Self {
            digest: Digest(digest),
            offset,
            total,
        })
    }
}

/// A part of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// The header, which comes first. [`crate::NodeEnd::expects`] tells whether it was requested.
    Header(Header),
    /// The next bytes.
    Bytes(Vec<u8>),
    /// The last byte has come. The digest is still to be checked.
    End,
}

/// The node's end of one stream.
#[derive(Debug, Default)]
pub struct Receiver {
    decoder: Decoder,
    left: Option<u64>,
    is_over: bool,
}

impl Receiver {
    /// Takes the bytes that were read.
    ///
    /// # Errors
    /// More bytes came than announced.
    pub fn receive(&mut self, chunk: &[u8]) -> Result<(), Violation> {
        self.decoder.receive(chunk)
    }

    /// The next part.
    ///
    /// # Errors
    /// The header breaks a bound, or more bytes came than announced, as from a bundle that never
    /// ends.
    pub fn poll(&mut self) -> Result<Option<Part>, Violation> {
        let rest = self.decoder.rest();
        match self.left {
            None => {
                let Some(bytes) = rest.first_chunk::<HEADER_BYTES>() else {
                    return Ok(None);
                };
                let header = Header::parse(bytes)?;
                self.decoder.skip(HEADER_BYTES);
                self.left = Some(header.total - header.offset);
                Ok(Some(Part::Header(header)))
            }
            Some(left) if rest.len() as u64 > left => Err(Violation::TooLarge("bundle stream")),
            Some(0) if !self.is_over => {
                self.is_over = true;
                Ok(Some(Part::End))
            }
            Some(_) if rest.is_empty() => Ok(None),
            Some(left) => {
                let bytes = rest.to_vec();
                self.decoder.skip(bytes.len());
                self.left = Some(left - bytes.len() as u64);
                Ok(Some(Part::Bytes(bytes)))
            }
        }
    }

    /// Whether everything has come; a stream that ends earlier was cut off.
    pub const fn is_over(&self) -> bool {
        self.is_over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(offset: u64, total: u64) -> Header {
        Header {
            digest: Digest([3; 32]),
            offset,
            total,
        }
    }

    fn parts(chunks: &[&[u8]]) -> Result<Vec<Part>, Violation> {
        let (mut receiver, mut parts) = (Receiver::default(), Vec::new());
        for chunk in chunks {
            receiver.receive(chunk)?;
            while let Some(part) = receiver.poll()? {
                parts.push(part);
            }
        }
        Ok(parts)
    }

    #[test]
    fn a_bundle_comes_in_chunks() {
        let head = header(2, 6).to_bytes();
        let got = parts(&[&head[..10], &head[10..], b"ab", b"cd"]).unwrap();
        let wanted = [
            Part::Header(header(2, 6)),
            Part::Bytes(b"ab".to_vec()),
            Part::Bytes(b"cd".to_vec()),
            Part::End,
        ];
        assert_eq!(got, wanted);
    }

    #[test]
    fn nothing_left_is_an_end() {
        let got = parts(&[&header(6, 6).to_bytes()]).unwrap();
        assert_eq!(got, [Part::Header(header(6, 6)), Part::End]);
    }

    #[test]
    fn a_bundle_that_never_ends_is_cut_off() {
        let head = header(0, 3).to_bytes();
        assert_eq!(
            parts(&[&head, b"abcd"]),
            Err(Violation::TooLarge("bundle stream"))
        );
        assert_eq!(
            parts(&[&head, b"abc", b"d"]),
            Err(Violation::TooLarge("bundle stream"))
        );
        let huge = header(0, MAX_BUNDLE_BYTES + 1).to_bytes();
        assert_eq!(parts(&[&huge]), Err(Violation::TooLarge("bundle")));
        assert_eq!(
            parts(&[&header(4, 3).to_bytes()]),
            Err(Violation::TooLarge("bundle"))
        );
    }
}
