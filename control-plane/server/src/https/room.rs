//! Limits the number of requests from their start until their answers have been read. An answer
//! that the client does not read stays in memory, and an HTTP/2 client can leave thousands of
//! answers unread over a few connections.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use axum::response::Response;
use casemate_api::endpoint::{Endpoint, Method};
use casemate_api::token::Scope;
use hyper::body::{Frame, SizeHint};
use parking_lot::Mutex;

use crate::fault::Fault;
use crate::places::{Place, Places};
use crate::plane::Actor;

/// Concurrent requests with tenants' and read-only tokens, and the same number again with
/// operators' tokens, which therefore always find slots.
const MAX_QUESTIONS: usize = 256;
/// Requests of one token at a time.
pub(super) const MAX_QUESTIONS_OF_TOKEN: usize = 64;

/// The slots of requests in flight, shared by all connections. `find` takes a slot for a request,
/// `hold` keeps it until the answer has been read. Requests without a token need no slot, because
/// their answers are in memory only once: see [`Shared`].
#[derive(Clone)]
pub(super) struct Room {
    changes: OfKind,
    answers: OfKind,
    /// Answers that continue until their reader disconnects.
    followed: OfKind,
}

/// Slots of one kind, by the id of the token.
#[derive(Clone)]
struct OfKind {
    what: &'static str,
    operators: Arc<Places<String>>,
    others: Arc<Places<String>>,
}

impl OfKind {
    fn new(what: &'static str) -> Self {
        let places = || Places::new(MAX_QUESTIONS, MAX_QUESTIONS_OF_TOKEN);
        Self {
            what,
            operators: places(),
            others: places(),
        }
    }
}

impl Room {
    pub(super) fn new() -> Self {
        Self {
            changes: OfKind::new("changes under way with one token"),
            answers: OfKind::new("answers under way with one token"),
            followed: OfKind::new("logs followed with one token"),
        }
    }

    /// Takes a slot for a request of this client; requests without a token need none.
    pub(super) fn find(
        &self,
        actor: &Actor,
        endpoint: &Endpoint,
        follows: bool,
    ) -> Result<Option<Place<String>>, Fault> {
        let Actor::Token { id, scope, .. } = actor else {
            return Ok(None);
        };
        let kind = match endpoint.method {
            Method::Get | Method::Head if follows => &self.followed,
            Method::Get | Method::Head => &self.answers,
            Method::Put | Method::Post | Method::Delete => &self.changes,
        };
        let places = match scope {
            Scope::Operator => &kind.operators,
            Scope::Tenant(_) | Scope::ReadOnly => &kind.others,
        };
        let place = places.take(id.clone());
        let too_many = || Fault::too_many(kind.what, MAX_QUESTIONS_OF_TOKEN);
        place.map(Some).ok_or_else(too_many)
    }
}

/// The answer together with the slot of its request, which is freed when the answer has been read
/// or dropped.
pub(super) fn hold(answer: Response, place: Option<Place<String>>) -> Response {
    match place {
        Some(place) => answer.map(|body| {
            Body::new(Held {
                body,
                _place: place,
            })
        }),
        None => answer,
    }
}

struct Held {
    body: Body,
    _place: Place<String>,
}

impl hyper::body::Body for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// An answer that is the same for all clients: it is in memory once, however many clients have
/// requested it.
#[derive(Debug, Default)]
pub(super) struct Shared(Mutex<Bytes>);

impl Shared {
    pub(super) const fn new() -> Self {
        Self(Mutex::new(Bytes::new()))
    }

    /// The bytes of the last answer, if they are the same.
    pub(super) fn bytes(&self, now: Vec<u8>) -> Bytes {
        let mut last = self.0.lock();
        if *last != now {
            *last = now.into();
        }
        last.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_answer_is_in_memory_once() {
        let shared = Shared::new();
        let [one, other] = [(); 2].map(|()| shared.bytes(b"the same".to_vec()));
        assert_eq!(one.as_ptr(), other.as_ptr());
        assert_eq!(shared.bytes(b"changed".to_vec()), "changed");
    }
}
