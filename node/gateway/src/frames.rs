//! Bounds the HTTP/2 frames that cost the caller little but make the gateway work. The HTTP/2
//! implementation bounds streams, resets and header blocks, but answers PING and SETTINGS without
//! limit. Time comes in as milliseconds.

use casemate_wire::TokenBucket;

/// Length of a frame's header (RFC 9113, section 4.1), bytes.
const HEAD_BYTES: usize = 9;
/// Flag of SETTINGS and PING: an acknowledgement of one of ours, which is rare.
const FLAG_ACK: u8 = 1;
/// Flag of DATA.
const FLAG_END_STREAM: u8 = 1;
/// Bytes sent to the caller that permit one WINDOW_UPDATE beyond the budget. A DATA frame with one
/// byte has ten bytes, and some callers return credit twice for each frame, for stream and
/// connection.
const BYTES_PER_WINDOW_UPDATE: u64 = 4;

/// The caller floods the connection with frames: it must be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the caller sends too many HTTP/2 {0} frames")]
pub struct Flood(&'static str);

/// The budgets of one connection, and its position in the frames.
#[derive(Debug)]
pub struct Frames {
    now_ms: u64,
    head: [u8; HEAD_BYTES],
    filled: usize,
    /// Bytes of the current frame's payload that are still to come.
    payload: usize,
    settings: Budget,
    pings: Budget,
    window_updates: Budget,
    others: Budget,
}

/// The budget of one kind of frame.
#[derive(Debug)]
struct Budget {
    name: &'static str,
    frames: TokenBucket,
}

impl Budget {
    fn new(name: &'static str, burst: u64, per_sec: u64, now_ms: u64) -> Self {
        let frames = TokenBucket::new(burst, per_sec, now_ms);
        Self { name, frames }
    }

    fn spend(&mut self, now_ms: u64) -> Result<(), Flood> {
        if self.frames.take(1, now_ms) {
            Ok(())
        } else {
            Err(Flood(self.name))
        }
    }
}

impl Frames {
    /// Makes full budgets.
    pub fn new(now_ms: u64) -> Self {
        Self {
            now_ms,
            head: [0; HEAD_BYTES],
            filled: 0,
            payload: 0,
            // Callers change their settings once or twice in the life of a connection.
            settings: Budget::new("SETTINGS", 32, 1, now_ms),
            // Some callers measure the round trip with each burst of DATA.
            pings: Budget::new("PING", 512, 64, now_ms),
            window_updates: Budget::new("WINDOW_UPDATE", 16_384, 256, now_ms),
            // PRIORITY, empty DATA, and unknown frame types.
            others: Budget::new("empty or ignored", 2048, 64, now_ms),
        }
    }

    /// Sets the time for the following calls.
    pub fn set_time(&mut self, now_ms: u64) {
        self.now_ms = now_ms;
    }

    /// `bytes` bytes were sent to the caller, which may return credit for them.
    pub fn sent(&mut self, bytes: usize) {
        self.window_updates
            .frames
            .add(bytes as u64 / BYTES_PER_WINDOW_UPDATE);
    }

    /// Counts the frames whose header is in these bytes.
    ///
    /// # Errors
    /// There are too many frames.
    pub fn count(&mut self, mut bytes: &[u8]) -> Result<(), Flood> {
        loop {
            let skipped = self.payload.min(bytes.len());
            self.payload -= skipped;
            bytes = &bytes[skipped..];
            if bytes.is_empty() {
                return Ok(());
            }
            let taken = (HEAD_BYTES - self.filled).min(bytes.len());
            self.head[self.filled..self.filled + taken].copy_from_slice(&bytes[..taken]);
            self.filled += taken;
            bytes = &bytes[taken..];
            if self.filled < HEAD_BYTES {
                return Ok(());
            }
            self.filled = 0;
            self.begin_frame()?;
        }
    }

    fn begin_frame(&mut self) -> Result<(), Flood> {
        let [a, b, c, kind, flags, ..] = self.head;
        self.payload = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        let now_ms = self.now_ms;
        match kind {
            // DATA without content that does not end its stream.
            0 if self.payload <= 1 && flags & FLAG_END_STREAM == 0 => self.others.spend(now_ms),
            // DATA with content; HEADERS, RST_STREAM and CONTINUATION have bounds elsewhere.
            0 | 1 | 3 | 9 => Ok(()),
            4 | 6 if flags & FLAG_ACK != 0 => self.others.spend(now_ms),
            4 => self.settings.spend(now_ms),
            6 => self.pings.spend(now_ms),
            8 => self.window_updates.spend(now_ms),
            _ => self.others.spend(now_ms),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = (payload.len() as u32).to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    /// Number of these frames that pass, fed in pieces of `piece` bytes.
    fn passes(frames: &mut Frames, bytes: &[u8], piece: usize) -> usize {
        for n in 0..100_000 {
            if bytes
                .chunks(piece)
                .any(|piece| frames.count(piece).is_err())
            {
                // The payload of the refused frame does not follow.
                (frames.filled, frames.payload) = (0, 0);
                return n;
            }
        }
        usize::MAX
    }

    #[test]
    fn frames_that_only_make_work_have_a_budget() {
        for piece in [1, 5, 9, 100] {
            let mut frames = Frames::new(0);
            assert_eq!(passes(&mut frames, &frame(4, 0, &[0; 6]), piece), 32);
            let mut frames = Frames::new(0);
            assert_eq!(passes(&mut frames, &frame(6, 0, &[0; 8]), piece), 512);
            let mut frames = Frames::new(0);
            assert_eq!(passes(&mut frames, &frame(2, 0, &[0; 5]), piece), 2048);
            let mut frames = Frames::new(0);
            assert_eq!(passes(&mut frames, &frame(0xfe, 0, b""), piece), 2048);
            let mut frames = Frames::new(0);
            assert_eq!(passes(&mut frames, &frame(0, 0, b""), piece), 2048);
            let mut frames = Frames::new(0);
            assert_eq!(passes(&mut frames, &frame(8, 0, &[0; 4]), piece), 16_384);
        }
    }

    #[test]
    fn the_budget_comes_back_with_time_and_credit_with_what_was_sent() {
        let mut frames = Frames::new(0);
        passes(&mut frames, &frame(6, 0, &[0; 8]), 100);
        frames.set_time(1000);
        assert_eq!(passes(&mut frames, &frame(6, 0, &[0; 8]), 100), 64);
        let mut frames = Frames::new(0);
        passes(&mut frames, &frame(8, 0, &[0; 4]), 100);
        frames.sent(4000);
        assert_eq!(passes(&mut frames, &frame(8, 0, &[0; 4]), 100), 1000);
        frames.sent(usize::MAX);
        assert_eq!(passes(&mut frames, &frame(8, 0, &[0; 4]), 100), 16_384);
    }

    #[test]
    fn requests_and_bodies_are_not_counted_here() {
        let mut frames = Frames::new(0);
        for bytes in [
            frame(1, 5, b"x"),
            frame(0, 0, b"xy"),
            frame(0, 1, b""),
            frame(3, 0, &[0; 4]),
        ] {
            assert_eq!(passes(&mut frames, &bytes, 7), usize::MAX);
        }
    }
}
