//! What of an answer the function may see: nothing that holds the secret that was just sent, in clear or in the encodings
//! that servers echo in: base64 at each of its three alignments and in both alphabets, hexadecimal, and the escapes of
//! URLs, forms, JSON, JavaScript and HTML over any of these.
//!
//! A server may do more to it (reverse it, encrypt it, hand it out in pieces): the declared host, method and path are the
//! defence. Of a secret in base64 the outermost letters, which mix with their neighbours, stay: less than a byte at each end.

mod needle;
mod spelling;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use bytes::{Bytes, BytesMut};
use zeroize::Zeroizing;

use needle::{Form, Found, Needle};

/// What stands where a secret stood.
pub const SCRUBBED: &str = "[scrubbed]";
/// Shorter secrets would be found everywhere by chance.
pub const MIN_SECRET_BYTES: usize = 4;
/// A body that ends within a secret shows its beginning: from so many bytes on that is taken for no chance.
const MIN_BEGUN_BYTES: usize = 8;
/// Bytes that may be looked at for each byte of a text. Nine forms, each read twice, need about 20; only a text that is
/// made of almost-secrets needs more, and it is not worth a vault's time.
const MAX_STEPS_PER_BYTE: u64 = 64;
/// Bytes that may be looked at beyond that: a long secret that comes in many small pieces is compared anew with each.
const SPARE_STEPS: u64 = 16 * 1024 * 1024;
/// Bytes that may be looked at for a head: 64 times the largest that a channel carries. Some milliseconds.
const MAX_HEAD_STEPS: u64 = MAX_STEPS_PER_BYTE * 48 * 1024;
/// What may have begun is compared anew with each piece up to this size, beyond it each time that it has doubled.
const MAX_EAGER_BYTES: usize = 2048;

/// The text is made so that looking through it takes for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the answer is too much like the secret to be searched for it")]
pub struct TooCostly;

/// Finds one secret in its forms.
pub struct Scrubber {
    needles: Vec<Needle>,
    /// For each byte the needles that may begin with it, a bit each.
    begins: [u16; 256],
}

/// How a text goes on.
enum Next {
    /// Nothing of the secret is in it.
    Clean,
    /// The secret stands here.
    Secret { from: usize, to: usize },
    /// It may stand here, but the text ends.
    Begun { from: usize },
}

impl Scrubber {
    /// For the secret of one call, and for what was made of it, such as the pair of Basic. `None`: too short to be found.
    pub fn new(secret: &[u8]) -> Option<Self> {
        if secret.len() < MIN_SECRET_BYTES {
            return None;
        }
        let mut needles = vec![
            Needle::new(secret.to_vec(), Form::Clear),
            Needle::new(hex::encode(secret).into_bytes(), Form::Hex),
        ];
        // In base64 a text looks in one of three ways, by where it begins; the letters that mix with neighbours are cut.
        for shift in 0..3 {
            let padded = Zeroizing::new([&b"\0\0"[..shift], secret].concat());
            let skip = [0, 2, 3][shift];
            for encoded in [
                STANDARD_NO_PAD.encode(padded.as_slice()),
                URL_SAFE_NO_PAD.encode(padded.as_slice()),
            ] {
                let encoded = Zeroizing::new(encoded.into_bytes());
                let whole = padded.len() * 8 / 6;
                let needle = Needle::new(encoded[skip.min(whole)..whole].to_vec(), Form::Base64);
                if needle.len() >= MIN_SECRET_BYTES
                    && !needles.iter().any(|known| known.is_same(&needle))
                {
                    needles.push(needle);
                }
            }
        }
        let mut begins = [0; 256];
        for (index, needle) in needles.iter().enumerate() {
            for byte in needle.first_bytes() {
                begins[usize::from(byte)] |= 1 << index;
            }
        }
        Some(Self { needles, begins })
    }

    /// For the fields of one head.
    pub fn head(&self) -> HeadScrubber<'_> {
        HeadScrubber {
            scrubber: self,
            steps: 0,
        }
    }

    /// Looks for the secret in a text that is whole, or of which more may come.
    fn next(
        &self,
        text: &[u8],
        whole: bool,
        steps: &mut u64,
        most: u64,
    ) -> Result<Next, TooCostly> {
        for from in 0..text.len() {
            let mut candidates = self.begins[usize::from(text[from])];
            if candidates == 0 {
                continue;
            }
            if *steps > most {
                return Err(TooCostly);
            }
            let mut begun = false;
            while candidates != 0 {
                let needle = &self.needles[candidates.trailing_zeros() as usize];
                candidates &= candidates - 1;
                match needle.at(&text[from..], steps) {
                    Found::Here(length) => {
                        return Ok(Next::Secret {
                            from,
                            to: from + length,
                        });
                    }
                    // The same is found however a text is cut: no later form is preferred to this one.
                    Found::Begun(_) if !whole => return Ok(Next::Begun { from }),
                    Found::Begun(length) => begun |= length >= MIN_BEGUN_BYTES,
                    Found::Not => {}
                }
            }
            if begun {
                return Ok(Next::Secret {
                    from,
                    to: text.len(),
                });
            }
        }
        Ok(Next::Clean)
    }
}

/// Scrubs the fields of one head. They have their steps together: whoever made a costly one would make many.
pub struct HeadScrubber<'a> {
    scrubber: &'a Scrubber,
    steps: u64,
}

impl HeadScrubber<'_> {
    /// Whether these bytes hold the secret. What is too costly to be searched is taken to.
    pub fn finds(&mut self, bytes: &[u8]) -> bool {
        let next = self
            .scrubber
            .next(bytes, true, &mut self.steps, MAX_HEAD_STEPS);
        !matches!(next, Ok(Next::Clean))
    }

    /// The value of a header field that the function may see.
    pub fn scrub(&mut self, value: Bytes) -> Bytes {
        if self.finds(&value) {
            Bytes::from_static(SCRUBBED.as_bytes())
        } else {
            value
        }
    }
}

/// Scrubs a body that comes in pieces. What may be the beginning of the secret is held back until more has come.
pub struct BodyScrubber {
    scrubber: Scrubber,
    held: BytesMut,
    /// Size that `held` must reach before it is looked at again.
    retry_bytes: usize,
    steps: u64,
    seen_bytes: u64,
}

impl BodyScrubber {
    /// For one body.
    pub fn new(scrubber: Scrubber) -> Self {
        Self {
            scrubber,
            held: BytesMut::new(),
            retry_bytes: 0,
            steps: 0,
            seen_bytes: 0,
        }
    }

    /// What the function may see, now that this piece has come.
    ///
    /// # Errors
    /// The body must be given up.
    pub fn push(&mut self, piece: Bytes) -> Result<Bytes, TooCostly> {
        self.seen_bytes += piece.len() as u64;
        if self.held.is_empty() {
            return self.scan(piece, false);
        }
        self.held.extend_from_slice(&piece);
        if self.held.len() < self.retry_bytes {
            return Ok(Bytes::new());
        }
        let text = self.held.split().freeze();
        self.scan(text, false)
    }

    /// The rest, now that the body has ended.
    ///
    /// # Errors
    /// The body must be given up.
    pub fn finish(mut self) -> Result<Bytes, TooCostly> {
        let text = self.held.split().freeze();
        self.scan(text, true)
    }

    fn scan(&mut self, mut text: Bytes, whole: bool) -> Result<Bytes, TooCostly> {
        let most = SPARE_STEPS + MAX_STEPS_PER_BYTE * self.seen_bytes;
        let mut clean = BytesMut::new();
        loop {
            match self.scrubber.next(&text, whole, &mut self.steps, most)? {
                Next::Secret { from, to } => {
                    clean.extend_from_slice(&text[..from]);
                    clean.extend_from_slice(SCRUBBED.as_bytes());
                    text = text.slice(to..);
                    continue;
                }
                Next::Begun { from } => {
                    self.held.extend_from_slice(&text[from..]);
                    let length = self.held.len();
                    self.retry_bytes = if length > MAX_EAGER_BYTES {
                        2 * length
                    } else {
                        0
                    };
                    text.truncate(from);
                }
                Next::Clean => {}
            }
            if clean.is_empty() {
                return Ok(text);
            }
            clean.extend_from_slice(&text);
            return Ok(clean.freeze());
        }
    }
}

#[cfg(test)]
mod tests;
