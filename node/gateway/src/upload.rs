//! The bodies of requests, from a caller to a worker.
//!
//! Until a worker asks for a body, it gets only the beginning, and that beginning is kept: if the
//! worker ends before it has begun the request, another worker gets it. A caller that expects `100
//! Continue` gets it when the worker asks (RFC 9110, section 10.1.1), because the HTTP server sends
//! it when the body is first polled.

use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use casemate_channel::SendBody;
use casemate_wire::Fields;
use casemate_wire::channel::EARLY_BYTES;
use http_body::Body as _;
use hyper::body::Incoming;

use crate::fields;

/// Why a request's body did not reach the worker whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UploadError {
    /// The body is larger than the perimeter allows.
    TooLarge,
    /// Nothing came from the caller for too long.
    Slow,
    /// The body broke off or is malformed.
    Caller,
    /// The worker's side is over; the response has the reason.
    Worker,
}

/// The bounds of a request's body.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Most bytes, as the perimeter sets.
    pub max_bytes: u64,
    /// Longest pause between two pieces.
    pub idle: Duration,
}

/// A caller's body on its way to a worker. Every future here may be dropped and started again: all
/// progress is in the value.
#[derive(Debug)]
pub struct Upload {
    from: Incoming,
    left_bytes: u64,
    idle: Duration,
    /// Whether the caller waits for `100 Continue`.
    is_expecting: bool,
    /// Bytes that have come, are not sent yet, and are not kept.
    pending: Bytes,
    /// The part of the kept bytes that is being sent.
    early: Bytes,
    /// The trailers, once all of the body has come.
    end: Option<Fields>,
    /// The beginning that is sent before the worker asks: at most [`EARLY_BYTES`].
    kept: Vec<Bytes>,
    is_asked: bool,
}

impl Upload {
    /// Starts with nothing sent.
    pub fn new(from: Incoming, bounds: Bounds, is_expecting: bool) -> Self {
        Self {
            end: from.is_end_stream().then(Fields::default),
            from,
            left_bytes: bounds.max_bytes,
            idle: bounds.idle,
            is_expecting,
            pending: Bytes::new(),
            early: Bytes::new(),
            kept: Vec::new(),
            is_asked: false,
        }
    }

    /// Whether the request has no body.
    pub fn is_empty(&self) -> bool {
        self.end.is_some() && self.pending.is_empty() && self.kept.is_empty()
    }

    /// Whether all of the body has come from the caller.
    pub fn has_come(&self) -> bool {
        self.end.is_some()
    }

    /// Whether the caller waits for `100 Continue` and has not got it.
    pub fn is_held_back(&self) -> bool {
        self.is_expecting && !self.is_asked
    }

    /// Begins again with another worker; returns whether everything that was sent is still kept.
    pub fn rewind(&mut self) -> bool {
        if self.is_asked {
            return false;
        }
        let mut all = std::mem::take(&mut self.kept).concat();
        all.extend_from_slice(&self.pending);
        (self.pending, self.early) = (all.into(), Bytes::new());
        true
    }

    /// Sends the body at the pace of the slower side; returns its trailers.
    ///
    /// # Errors
    /// See [`UploadError`].
    pub async fn pump(&mut self, to: &mut SendBody) -> Result<Fields, UploadError> {
        if self.is_held_back() {
            self.ask(to).await?;
        }
        loop {
            self.send(to).await?;
            if let Some(trailers) = &self.end {
                return Ok(trailers.clone());
            }
            let from = &mut self.from;
            let frame = std::future::poll_fn(|context| Pin::new(&mut *from).poll_frame(context));
            let frame = match tokio::time::timeout(self.idle, frame).await {
                Err(_) => return Err(UploadError::Slow),
                Ok(None) => {
                    self.end = Some(Fields::default());
                    continue;
                }
                Ok(Some(Err(_))) => return Err(UploadError::Caller),
                Ok(Some(Ok(frame))) => frame,
            };
            match frame.into_data() {
                Ok(bytes) => {
                    let left_bytes = self.left_bytes.checked_sub(bytes.len() as u64);
                    self.left_bytes = left_bytes.ok_or(UploadError::TooLarge)?;
                    self.pending = bytes;
                    if self.from.is_end_stream() {
                        self.end = Some(Fields::default());
                    }
                }
                Err(frame) => {
                    let trailers = frame.into_trailers();
                    self.end = trailers
                        .ok()
                        .map(|fields| fields::trailers_to_worker(&fields));
                }
            }
        }
    }

    /// Sends pending bytes. Until the worker has asked, only bytes that can be kept.
    async fn send(&mut self, to: &mut SendBody) -> Result<(), UploadError> {
        loop {
            let sent = to.send_from(&mut self.early).await;
            sent.map_err(|_| UploadError::Worker)?;
            if self.is_asked || self.pending.is_empty() {
                let sent = to.send_from(&mut self.pending).await;
                return sent.map_err(|_| UploadError::Worker);
            }
            let kept: usize = self.kept.iter().map(Bytes::len).sum();
            let room = (EARLY_BYTES as usize)
                .saturating_sub(kept)
                .min(self.pending.len());
            if room == 0 {
                self.ask(to).await?;
            } else {
                self.early = self.pending.split_to(room);
                self.kept.push(self.early.clone());
            }
        }
    }

    /// Waits until the worker asks for the body.
    async fn ask(&mut self, to: &mut SendBody) -> Result<(), UploadError> {
        to.asked().await.map_err(|_| UploadError::Worker)?;
        self.is_asked = true;
        self.kept = Vec::new();
        Ok(())
    }
}
