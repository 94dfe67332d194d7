//! An upstream's answer, in the form that the function may see.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use casemate_channel::SendBody;
use casemate_vault_core::gunzip::{Gunzip, STEP_OUTPUT_BYTES};
use casemate_vault_core::scrub::{BodyScrubber, HeadScrubber, MAX_BLOCK_BYTES, TooCostly};
use casemate_wire::{CallCode, Fields, ResponseHead};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use tokio::sync::Semaphore;

use super::heads::{self, ContentEncoding, CredentialedRules};
use super::refused::Refused;
use super::searchers::Shared;
use super::watch::{Credentialed, Watch};

/// Longest pause between two pieces of an answer's body.
const BODY_TIMEOUT: Duration = Duration::from_secs(120);

/// An answer from whose head every credential was removed.
pub(super) struct Answer {
    pub(super) head: ResponseHead,
    /// `None`: the answer has no body.
    pub(super) body: Option<AnswerBody>,
}

/// The body of an answer. With a credential, the body is decoded here, because an encoded one
/// cannot be searched.
pub(super) struct AnswerBody {
    body: Incoming,
    decoder: Decoder,
    scrubber: Option<Scrubber>,
    /// The tenant's permit to decode and search.
    turn: Arc<Semaphore>,
}

/// Removes the values from a body.
struct Scrubber {
    scrubber: BodyScrubber,
    watch: Watch,
    /// Other calls may share the searcher while it is held.
    _searcher: Arc<Shared>,
}

enum Decoder {
    Identity,
    Gzip {
        gunzip: Box<Gunzip>,
        input: Bytes,
        /// More can be decoded before the upstream is asked for more.
        more: bool,
    },
}

/// How the delivery of a body ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Delivered {
    /// All of the body is sent.
    Whole,
    /// The worker does not want the rest.
    Unwanted,
}

impl Answer {
    /// Makes an answer from the upstream's response.
    pub(super) async fn new(
        response: http::Response<Incoming>,
        credentialed: Option<Credentialed>,
        turn: Arc<Semaphore>,
    ) -> Result<Self, Refused> {
        let (parts, body) = response.into_parts();
        heads::check_transfer_encoding(parts.version, &parts.headers)?;
        let encoding = match &credentialed {
            Some(credentialed) => {
                credentialed.watch.rules.check_status(parts.status)?;
                ContentEncoding::of(&parts.headers)?
            }
            None => ContentEncoding::Identity,
        };
        let (head, matches) = visible_head(&parts, credentialed.as_ref())?;
        if let Some(credentialed) = &credentialed {
            credentialed.watch.count(&matches).await?;
        }
        let scrubber = credentialed.and_then(|Credentialed { watch, searcher }| {
            let searcher = searcher?;
            Some(Scrubber {
                scrubber: BodyScrubber::new(searcher.searcher().clone()),
                watch,
                _searcher: searcher,
            })
        });
        let body = (!body.is_end_stream()).then(|| AnswerBody {
            body,
            decoder: Decoder::new(encoding),
            scrubber,
            turn,
        });
        Ok(Self { head, body })
    }
}

impl AnswerBody {
    /// Sends the body to the worker. The caller ends it by dropping the future.
    ///
    /// # Errors
    /// The body cannot be delivered completely, and the worker has got a part of it.
    pub(super) async fn deliver(mut self, out: &mut SendBody) -> Result<Delivered, Refused> {
        loop {
            let piece = tokio::select! {
                piece = self.decoder.next(&mut self.body, &self.turn) => piece?,
                () = out.cancelled() => return Ok(Delivered::Unwanted),
            };
            let ended = piece.is_none();
            let visible = self.scrub(piece).await?;
            if !visible.is_empty() && out.send(visible).await.is_err() {
                return Ok(Delivered::Unwanted);
            }
            if ended {
                return Ok(Delivered::Whole);
            }
        }
    }

    /// The visible part of a piece, or of the bytes that were held back when the body has ended.
    async fn scrub(&mut self, piece: Option<Bytes>) -> Result<Bytes, Refused> {
        let Some(Scrubber {
            scrubber, watch, ..
        }) = &mut self.scrubber
        else {
            return Ok(piece.unwrap_or(Bytes::from_static(b"")));
        };
        let mut visible = BytesMut::new();
        let mut rest = piece.as_deref();
        loop {
            let part = {
                let _turn = self.turn.acquire().await;
                match rest {
                    Some(bytes) => {
                        let (block, more) = bytes.split_at(bytes.len().min(MAX_BLOCK_BYTES));
                        rest = Some(more);
                        scrubber.push(block)
                    }
                    None => scrubber.finish(),
                }
            };
            visible.extend_from_slice(&part.map_err(unsearchable)?);
            watch.count(&scrubber.take_matches()).await?;
            // Pieces that have arrived already are ready at once, so other tasks of this thread get
            // a chance to run.
            tokio::task::yield_now().await;
            if rest.is_none_or(<[u8]>::is_empty) {
                return Ok(visible.freeze());
            }
        }
    }
}

impl Decoder {
    fn new(encoding: ContentEncoding) -> Self {
        match encoding {
            ContentEncoding::Identity => Self::Identity,
            ContentEncoding::Gzip => Self::Gzip {
                gunzip: Box::default(),
                input: Bytes::new(),
                more: false,
            },
        }
    }

    /// The next piece of the decoded body; `None` at its end. Dropping the future between two
    /// pieces loses none.
    async fn next(
        &mut self,
        body: &mut Incoming,
        turn: &Semaphore,
    ) -> Result<Option<Bytes>, Refused> {
        let Self::Gzip {
            gunzip,
            input,
            more,
        } = self
        else {
            return received(body).await;
        };
        loop {
            while *more {
                let mut output = Vec::with_capacity(STEP_OUTPUT_BYTES);
                {
                    let _turn = turn.acquire().await;
                    *more = gunzip.step(input, &mut output).map_err(undecodable)?;
                }
                if !output.is_empty() {
                    return Ok(Some(output.into()));
                }
                // Input without output can be long, so other tasks of this thread get a chance to
                // run.
                tokio::task::yield_now().await;
            }
            match received(body).await? {
                Some(piece) => (*input, *more) = (piece, true),
                None => {
                    gunzip.finish().map_err(undecodable)?;
                    return Ok(None);
                }
            }
        }
    }
}

fn undecodable(error: casemate_vault_core::gunzip::GzipError) -> Refused {
    Refused::new(
        CallCode::UpstreamEncoding,
        format!("the upstream's answer cannot be decoded: {error}"),
    )
}

/// The next piece of data from the upstream. Trailers are dropped: they are not searched.
async fn received(body: &mut Incoming) -> Result<Option<Bytes>, Refused> {
    loop {
        let frame = tokio::time::timeout(BODY_TIMEOUT, body.frame()).await;
        let frame = frame.map_err(|_| {
            Refused::new(CallCode::UpstreamTimeout, "the upstream's answer stalled")
        })?;
        let Some(frame) = frame else {
            return Ok(None);
        };
        // The text is our own, because a library's error might quote what was sent.
        let frame = frame.map_err(|_| {
            Refused::new(
                CallCode::UpstreamFailed,
                "the upstream broke off its answer",
            )
        })?;
        if let Ok(piece) = frame.into_data() {
            return Ok(Some(piece));
        }
    }
}

/// The visible fields of an answer's head, and how often the head held each value.
fn visible_head(
    parts: &http::response::Parts,
    credentialed: Option<&Credentialed>,
) -> Result<(ResponseHead, Vec<u32>), Refused> {
    let mut fields = Fields::default();
    let searcher = credentialed.and_then(|credentialed| credentialed.searcher.as_ref());
    let mut scrubber = searcher.map(|shared| HeadScrubber::new(shared.searcher()));
    let rules = credentialed.map(|credentialed| credentialed.watch.rules);
    for (name, value) in &parts.headers {
        let is_shown = !heads::is_hop_by_hop(name.as_str())
            && rules.is_none_or(|rules| is_shown(rules, name.as_str()));
        if is_shown {
            push_visible(&mut fields, &mut scrubber, name.as_str(), value.as_bytes())
                .map_err(unsearchable)?;
        }
    }
    let matches = scrubber.map_or_else(Vec::new, |mut scrubber| scrubber.take_matches());
    fields.check().map_err(|_| {
        Refused::new(
            CallCode::UpstreamFailed,
            "the upstream's answer has too many header fields",
        )
    })?;
    let head = ResponseHead {
        status: parts.status.as_u16(),
        fields,
    };
    Ok((head, matches))
}

fn unsearchable(error: TooCostly) -> Refused {
    Refused::new(CallCode::UpstreamUnsearchable, error.to_string())
}

/// The body is delivered decoded, so its content encoding is removed.
fn is_shown(rules: CredentialedRules, name: &str) -> bool {
    name != "content-encoding" && rules.shows(name)
}

fn push_visible(
    fields: &mut Fields,
    scrubber: &mut Option<HeadScrubber<'_>>,
    name: &str,
    value: &[u8],
) -> Result<(), TooCostly> {
    let Some(scrubber) = scrubber else {
        fields.push(name, value);
        return Ok(());
    };
    if !scrubber.finds(name.as_bytes())? {
        fields.push(name, scrubber.scrub(Bytes::copy_from_slice(value))?);
    }
    Ok(())
}
