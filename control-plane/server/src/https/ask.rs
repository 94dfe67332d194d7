//! One request: who asks, authorised by the API's table; its parameters, query and body, each parsed and bounded.

use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody as _};
use axum::extract::{RawPathParams, Request};
use casemate_api::endpoint::{Access, Endpoint, Operation};
use casemate_api::error::code;
use casemate_api::log::LogQuery;
use casemate_api::token::Scope;
use casemate_trust::id::TenantId;
use futures_util::{Stream, StreamExt as _};
use http::HeaderMap;
use http::header::AUTHORIZATION;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::room::Room;
use super::seat::Seat;
use crate::fault::Fault;
use crate::places::Place;
use crate::plane::{Actor, Plane};

/// Time limit between two chunks of a body.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(30);
/// Time limit for a whole body: the largest bundle at 100 kB a second.
const BODY_TIMEOUT: Duration = Duration::from_secs(120);

/// The origin of a request: an extension of it.
#[derive(Clone)]
pub(super) struct Remote {
    pub(super) address: IpAddr,
    /// The slot of its connection.
    pub(super) seat: Arc<Seat>,
}

/// The state from which every request is answered.
#[derive(Clone)]
pub(super) struct Served {
    pub(super) plane: Arc<Plane>,
    pub(super) stopping: CancellationToken,
    pub(super) room: Room,
}

/// One question: made by the router of each request, owned by the task that answers it. First `authorise`, then
/// `find_room`, then the parameters, the query and the body, as the answer needs them.
pub(super) struct Ask {
    pub(super) plane: Arc<Plane>,
    pub(super) stopping: CancellationToken,
    pub(super) endpoint: &'static Endpoint,
    /// The client.
    pub(super) actor: Actor,
    /// The slot of the connection; without one nothing is counted.
    seat: Option<Arc<Seat>>,
    room: Room,
    params: Vec<(String, String)>,
    path: String,
    query: String,
    headers: HeaderMap,
    body: Body,
}

impl Ask {
    /// A request that was routed to `endpoint`: nobody has shown a token yet.
    pub(super) fn new(
        served: &Served,
        endpoint: &'static Endpoint,
        params: &RawPathParams,
        request: Request,
    ) -> Self {
        let (mut parts, body) = request.into_parts();
        let remote = parts.extensions.remove::<Remote>();
        Self {
            plane: Arc::clone(&served.plane),
            stopping: served.stopping.clone(),
            endpoint,
            actor: Actor::Stranger(remote.as_ref().map(|remote| remote.address)),
            seat: remote.map(|remote| remote.seat),
            room: served.room.clone(),
            params: params
                .iter()
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
            path: parts.uri.path().to_owned(),
            query: parts.uri.query().unwrap_or_default().to_owned(),
            headers: parts.headers,
            body,
        }
    }

    /// The path as it was asked for.
    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// Checks whether this client may send this request, by the table.
    pub(super) fn authorise(&mut self) -> Result<(), Fault> {
        if self.endpoint.access == Access::Public {
            return Ok(());
        }
        let unknown = || {
            let message = "expected `Authorization: Bearer casemate_...` with a token that exists and has not expired";
            Fault::new(401, code::UNAUTHENTICATED, message)
        };
        let header = self
            .headers
            .get(AUTHORIZATION)
            .and_then(|value| value.to_str().ok());
        let token = header
            .and_then(|value| value.strip_prefix("Bearer "))
            .ok_or_else(unknown)?;
        self.actor = self.plane.authenticate(token.trim()).ok_or_else(unknown)?;
        if let Some(seat) = self.seat.take() {
            seat.prove(&self.actor);
        }
        let tenant = self
            .params
            .iter()
            .find(|(name, _)| name == "id")
            .map(|(_, id)| id.parse::<TenantId>());
        let tenant = tenant
            .transpose()
            .map_err(|error| Fault::bad_request(error.to_string()))?;
        let Actor::Token { scope, .. } = &self.actor else {
            return Err(unknown());
        };
        if !self.endpoint.access.allows(scope, tenant.as_ref()) {
            let message = format!(
                "a token of scope {scope} may not; allowed to: {}",
                self.endpoint.access.as_str()
            );
            return Err(Fault::new(403, code::FORBIDDEN, message));
        }
        Ok(())
    }

    /// Takes a slot for the request, which is held until its answer has been read.
    pub(super) fn find_room(&self) -> Result<Option<Place<String>>, Fault> {
        let follows = self.endpoint.id == Operation::TenantLogs && {
            let LogQuery { follow, .. } = self.query()?;
            follow
        };
        self.room.find(&self.actor, self.endpoint, follows)
    }

    /// A parameter of the path.
    pub(super) fn param<T: FromStr<Err: std::fmt::Display>>(&self, name: &str) -> Result<T, Fault> {
        let found = self.params.iter().find(|(of, _)| of == name);
        let text = found.map(|(_, value)| value.as_str()).unwrap_or_default();
        text.parse()
            .map_err(|error: T::Err| Fault::bad_request(format!("{name}: {error}")))
    }

    /// The tenant of the token, where the path names none.
    pub(super) fn own_tenant(&self) -> Result<TenantId, Fault> {
        match &self.actor {
            Actor::Token {
                scope: Scope::Tenant(id),
                ..
            } => Ok(*id),
            _ => Err(Fault::new(403, code::FORBIDDEN, "only a tenant may")),
        }
    }

    /// The length of the body, if the header states it.
    pub(super) fn declared_bytes(&self) -> Option<u64> {
        self.body.size_hint().exact()
    }

    /// The query.
    pub(super) fn query<T: DeserializeOwned>(&self) -> Result<T, Fault> {
        let uri: http::Uri = format!("/?{}", self.query)
            .parse()
            .map_err(|_| Fault::bad_request("the query is malformed"))?;
        let query = axum::extract::Query::try_from_uri(&uri);
        query
            .map(|query| query.0)
            .map_err(|error| Fault::bad_request(error.body_text()))
    }

    /// The body as a stream, with a time limit for each chunk.
    pub(super) fn stream(&mut self) -> impl Stream<Item = Result<Bytes, Fault>> + Unpin + use<> {
        let stream = std::mem::take(&mut self.body).into_data_stream();
        Box::pin(in_time(stream, BODY_TIMEOUT))
    }

    /// The whole body, at most `limit` bytes.
    pub(super) async fn body(&mut self, limit: usize) -> Result<Vec<u8>, Fault> {
        let too_large = || {
            let message = format!("expected a body of at most {limit} bytes");
            Fault::new(413, code::TOO_LARGE, message).with(json!({ "limit_bytes": limit }))
        };
        if self.body.size_hint().lower() > limit as u64 {
            return Err(too_large());
        }
        let (mut stream, mut body) = (self.stream(), Vec::new());
        while let Some(chunk) = stream.next().await {
            let chunk = chunk?;
            if body.len() + chunk.len() > limit {
                return Err(too_large());
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    /// The body as JSON.
    pub(super) async fn json<T: DeserializeOwned>(&mut self, limit: usize) -> Result<T, Fault> {
        let body = self.body(limit).await?;
        serde_json::from_slice(&body).map_err(|error| {
            Fault::bad_request(format!(
                "the body does not have the expected format: {error}"
            ))
        })
    }
}

/// A body with a time limit for each chunk and for the whole. The time begins with the first read:
/// the request may have to wait for its turn, which is not the client's fault.
fn in_time<E>(
    body: impl Stream<Item = Result<Bytes, E>> + Unpin,
    whole: Duration,
) -> impl Stream<Item = Result<Bytes, Fault>> {
    let state = (body, None);
    futures_util::stream::unfold(state, move |(mut body, deadline)| async move {
        let now = Instant::now();
        let deadline = deadline.unwrap_or(now + whole);
        let chunk = match timeout_at(deadline.min(now + CHUNK_TIMEOUT), body.next()).await {
            Ok(None) => return None,
            Ok(Some(Ok(chunk))) => Ok(chunk),
            Ok(Some(Err(_))) => Err(Fault::bad_request("the body was cut off")),
            Err(_) => Err(Fault::new(408, code::TIMEOUT, "the body came too slowly")),
        };
        Some((chunk, (body, Some(deadline))))
    })
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn waiting_for_its_turn_is_not_counted_against_a_body() {
        // Each chunk is ready only on the second poll.
        let mut asked = 0;
        let body = futures_util::stream::poll_fn(move |context| {
            asked += 1;
            context.waker().wake_by_ref();
            match asked % 2 {
                0 => Poll::Ready(Some(Ok::<_, ()>(Bytes::from_static(b"x")))),
                _ => Poll::Pending,
            }
        });
        let whole = Duration::from_millis(500);
        let mut body = Box::pin(in_time(body, whole));
        tokio::time::sleep(whole * 2).await;
        assert!(body.next().await.unwrap().is_ok());
        tokio::time::sleep(whole * 2).await;
        let late = body.next().await.unwrap().unwrap_err();
        assert_eq!(late.code(), code::TIMEOUT);
    }
}
