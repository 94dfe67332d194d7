//! Bounds of a message that decoding does not check.

use casemate_trust::dsse::MAX_ENVELOPE_BYTES;

use crate::message::{
    LogEntry, MAX_BATCH_BYTES, MAX_BATCH_RECORDS, MAX_FETCH_DIGESTS, MAX_HELLO_TENANTS,
    MAX_IMAGE_PIECE_BYTES, MAX_LOG_BYTES, MAX_STATUS_BYTES, MAX_TEXT_BYTES, NotStored, ToControl,
    ToNode,
};

/// Most epochs of a pool, or grants, in one `Hello`.
const MAX_HELLO_EPOCHS: usize = casemate_trust::judge::MAX_EPOCHS_HELD;
/// Largest lease answer, bytes.
const MAX_LEASE_BYTES: usize = MAX_ENVELOPE_BYTES;
/// Largest object, bytes.
const MAX_OBJECT_BYTES: usize = casemate_trust::release::MAX_RELEASE_BYTES;

/// A message with bounds: asked by the decoder of each message before anybody sees it.
pub(crate) trait Bounded {
    /// The bound that the message exceeds, if any.
    fn flaw(&self) -> Option<&'static str>;
}

fn over(is_over: bool, what: &'static str) -> Option<&'static str> {
    is_over.then_some(what)
}

impl Bounded for ToControl {
    fn flaw(&self) -> Option<&'static str> {
        match self {
            Self::Hello(hello) => over(
                hello.has.tenants.len() > MAX_HELLO_TENANTS,
                "tenants of a hello",
            )
            .or(over(
                hello.has.epochs.len() > MAX_HELLO_EPOCHS,
                "epochs of a hello",
            ))
            .or(over(
                hello.has.grants.len() > MAX_HELLO_EPOCHS,
                "grants of a hello",
            ))
            .or(over(
                hello.software.len() > MAX_TEXT_BYTES,
                "software version",
            )),
            Self::Join { request } => over(request.len() > MAX_STATUS_BYTES, "join request"),
            Self::Nack { code, message, .. } | Self::NotStored(NotStored { code, message, .. }) => {
                over(code.len() > MAX_TEXT_BYTES, "code")
                    .or(over(message.len() > MAX_TEXT_BYTES, "text"))
            }
            Self::FetchObjects { digests, .. } => {
                over(digests.len() > MAX_FETCH_DIGESTS, "digests of a fetch")
            }
            Self::Logs { entries, .. } => {
                over(entries.len() > MAX_BATCH_RECORDS, "records of a batch")
                    .or(over(
                        entries.iter().map(LogEntry::bytes).sum::<usize>() > MAX_BATCH_BYTES,
                        "batch",
                    ))
                    .or(over(
                        entries.iter().any(|entry| entry.bytes() > MAX_LOG_BYTES),
                        "log record",
                    ))
            }
            Self::Status { json } => over(json.len() > MAX_STATUS_BYTES, "status"),
            Self::FetchImage { bytes, .. } => {
                over(*bytes > MAX_IMAGE_PIECE_BYTES, "piece of an image")
            }
            Self::Ack { .. }
            | Self::Stored { .. }
            | Self::FetchBundle { .. }
            | Self::Lease { .. } => None,
        }
    }
}

impl Bounded for ToNode {
    fn flaw(&self) -> Option<&'static str> {
        match self {
            Self::Statement { bytes, .. } => over(bytes.len() > MAX_ENVELOPE_BYTES, "statement"),
            Self::Revoked { list } => over(list.len() > MAX_ENVELOPE_BYTES, "statement"),
            Self::Object { bytes, .. } => over(bytes.len() > MAX_OBJECT_BYTES, "object"),
            Self::Lease { answer } => over(answer.len() > MAX_LEASE_BYTES, "lease answer"),
            Self::JoinRefused { code, message } | Self::Refused { code, message } => {
                over(code.len() > MAX_TEXT_BYTES, "code")
                    .or(over(message.len() > MAX_TEXT_BYTES, "text"))
            }
            Self::Welcome { .. }
            | Self::JoinPending
            | Self::Admitted
            | Self::Synced { .. }
            | Self::Unavailable { .. } => None,
        }
    }
}

/// The beginning of a text, cut between characters.
pub(crate) fn shorten(mut text: String, most: usize) -> String {
    if text.len() > most {
        text.truncate(text.floor_char_boundary(most));
    }
    text
}
