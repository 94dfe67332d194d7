//! What comes back from an upstream, as the function may see it.

use std::io;
use std::pin::Pin;
use std::time::Duration;

use async_compression::tokio::bufread::{BrotliDecoder, GzipDecoder};
use bytes::Bytes;
use casemate_channel::Reply;
use casemate_vault_core::scrub::{BodyScrubber, Scrubber};
use casemate_wire::{Fields, RESET_ABANDONED, ResponseHead};
use futures_util::{Stream, StreamExt as _, TryStreamExt as _};
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use tokio_util::io::{ReaderStream, StreamReader};

use super::Refused;
use super::upstream::Closed;

/// Between two pieces of an answer's body.
const BODY_TIMEOUT: Duration = Duration::from_secs(120);
/// Pieces in which a decoded body goes on, bytes.
const DECODED_BYTES: usize = 16 * 1024;

type Pieces = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

/// An answer, with whatever held the credential taken out.
pub(super) struct Answer {
    head: ResponseHead,
    /// `None`: it has no body.
    body: Option<Pieces>,
    scrubber: Option<BodyScrubber>,
    closed: Closed,
}

impl Answer {
    /// From what the upstream sent. With a scrubber the body is decoded here: an encoded one cannot be searched.
    pub(super) fn new(
        response: http::Response<Incoming>,
        scrubber: Option<Scrubber>,
        closed: Closed,
    ) -> Result<Self, Refused> {
        let (mut parts, body) = response.into_parts();
        let body = (!body.is_end_stream())
            .then(|| -> Pieces { Box::pin(body.into_data_stream().map_err(io::Error::other)) });
        let body = match (body, &scrubber) {
            (Some(body), Some(_)) => {
                let decoded = decoded(body, &parts.headers)?;
                parts.headers.remove(CONTENT_ENCODING);
                // It may be another once the body is scrubbed.
                parts.headers.remove(CONTENT_LENGTH);
                Some(decoded)
            }
            (body, _) => body,
        };
        Ok(Self {
            head: visible_head(&parts, scrubber.as_ref())?,
            body,
            scrubber: scrubber.map(BodyScrubber::new),
            closed,
        })
    }

    /// Sends it to the worker, until the credential is withdrawn.
    pub(super) async fn deliver(self, reply: Reply) {
        let Self {
            head,
            body,
            mut scrubber,
            closed,
        } = self;
        let mut out = reply.send(&head, body.is_none());
        let Some(mut body) = body else {
            return out.finish();
        };
        loop {
            let piece = tokio::select! {
                piece = tokio::time::timeout(BODY_TIMEOUT, body.next()) => piece,
                () = closed.wait() => return out.reset(RESET_ABANDONED),
                () = out.cancelled() => return,
            };
            let ended = matches!(piece, Ok(None));
            let visible = match (piece, scrubber.as_mut()) {
                (Ok(Some(Ok(piece))), Some(scrubber)) => scrubber.push(piece),
                (Ok(Some(Ok(piece))), None) => Ok(piece),
                (Ok(None), _) => scrubber
                    .take()
                    .map_or(Ok(Bytes::new()), BodyScrubber::finish),
                (Ok(Some(Err(_))) | Err(_), _) => return out.reset(RESET_ABANDONED),
            };
            let visible = match visible {
                Ok(visible) => visible,
                Err(error) => {
                    tracing::warn!(%error, "an answer is given up");
                    return out.reset(RESET_ABANDONED);
                }
            };
            if scrubber.is_some() {
                // Pieces that have come already are ready at once, and searching each takes a while: others have a turn.
                tokio::task::yield_now().await;
            }
            if !visible.is_empty() {
                let sent = tokio::select! {
                    sent = tokio::time::timeout(BODY_TIMEOUT, out.send(visible)) => sent,
                    () = closed.wait() => return out.reset(RESET_ABANDONED),
                };
                if !matches!(sent, Ok(Ok(()))) {
                    return;
                }
            }
            if ended {
                return out.finish();
            }
        }
    }
}

/// The body without its content encoding (RFC 9110, section 8.4.1), of those that calls with a credential ask for.
fn decoded(body: Pieces, headers: &http::HeaderMap) -> Result<Pieces, Refused> {
    let mut encodings = headers.get_all(CONTENT_ENCODING).iter();
    let encoding = match (encodings.next(), encodings.next()) {
        (None, _) => return Ok(body),
        (Some(one), None) => one.as_bytes().trim_ascii().to_ascii_lowercase(),
        (Some(_), Some(_)) => b"several of them".to_vec(),
    };
    // A decoder reads on for as long as nothing comes out, and what makes nothing can be made long: others have a turn.
    let body = body.then(async |piece| {
        tokio::task::yield_now().await;
        piece
    });
    let reader = StreamReader::new(Box::pin(body));
    match encoding.as_slice() {
        b"gzip" | b"x-gzip" => {
            let mut decoder = GzipDecoder::new(reader);
            decoder.multiple_members(true);
            Ok(Box::pin(ReaderStream::with_capacity(
                decoder,
                DECODED_BYTES,
            )))
        }
        b"br" => Ok(Box::pin(ReaderStream::with_capacity(
            BrotliDecoder::new(reader),
            DECODED_BYTES,
        ))),
        b"identity" | b"" => Ok(reader.into_inner()),
        _ => Err(Refused::new(
            "upstream_encoding",
            "the upstream's answer has a content encoding that was not asked for (gzip and br were), and cannot be searched for the \
             credential",
        )),
    }
}

/// Fields of a connection (RFC 9110, section 7.6.1), and our own.
fn is_hop_by_hop(name: &str) -> bool {
    matches!(
        name,
        "connection"
            | "keep-alive"
            | "proxy-connection"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
            | "proxy-authenticate"
    )
}

/// What the function may see of an answer's head.
fn visible_head(
    parts: &http::response::Parts,
    scrubber: Option<&Scrubber>,
) -> Result<ResponseHead, Refused> {
    let mut fields = Fields::default();
    let mut scrubber = scrubber.map(Scrubber::head);
    for (name, value) in &parts.headers {
        if is_hop_by_hop(name.as_str()) {
            continue;
        }
        match &mut scrubber {
            Some(scrubber) => {
                if !scrubber.finds(name.as_str().as_bytes()) {
                    let value = Bytes::copy_from_slice(value.as_bytes());
                    fields.push(name.as_str(), scrubber.scrub(value));
                }
            }
            None => fields.push(name.as_str(), value),
        }
    }
    fields.check().map_err(|_| {
        Refused::new(
            "upstream_failed",
            "the upstream's answer has too many header fields",
        )
    })?;
    Ok(ResponseHead {
        status: parts.status.as_u16(),
        fields,
    })
}
