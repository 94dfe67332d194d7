//! Detects idle connections. Pings do not count: a client that sends nothing else is considered
//! gone.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use parking_lot::{Mutex, MutexGuard};
use tokio::time::{Instant, sleep_until};

/// Bytes of an answer that are sent at a time: the progress of a slow client is visible in steps of
/// this size.
const STEP_BYTES: usize = 16 * 1024;

/// The activity of one connection: shared by its requests, which hold an [`Answering`], and by the
/// task that closes the connection when `idle` returns.
#[derive(Debug)]
pub(super) struct Activity {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Number of requests in progress: each has its own time limits.
    answering: usize,
    /// Time of the last activity.
    moved: Instant,
}

/// Marks a request as in progress until dropped.
pub(super) struct Answering(Arc<Activity>);

impl Activity {
    pub(super) fn new() -> Arc<Self> {
        let state = State {
            answering: 0,
            moved: Instant::now(),
        };
        Arc::new(Self {
            state: Mutex::new(state),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Marks the begin of a request.
    pub(super) fn answer(self: &Arc<Self>) -> Answering {
        self.state().answering += 1;
        Answering(Arc::clone(self))
    }

    /// Waits until no request is in progress and no part of an answer was read for `patience`.
    pub(super) async fn idle(&self, patience: Duration) {
        loop {
            let until = {
                let state = self.state();
                let is_idle = state.answering == 0;
                let since = if is_idle { state.moved } else { Instant::now() };
                since + patience
            };
            if until <= Instant::now() {
                return;
            }
            sleep_until(until).await;
        }
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.answering -= 1;
        state.moved = Instant::now();
    }
}

/// The body of an answer; each part that the client reads counts as activity.
pub(super) struct Watched {
    body: axum::body::Body,
    /// The rest of a chunk that is sent in steps.
    rest: Bytes,
    activity: Arc<Activity>,
}

impl Watched {
    pub(super) fn new(body: axum::body::Body, activity: Arc<Activity>) -> Self {
        let rest = Bytes::new();
        Self {
            body,
            rest,
            activity,
        }
    }
}

impl Body for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.rest.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                end => return Poll::Ready(end),
            }
        }
        self.activity.state().moved = Instant::now();
        let step = self.rest.len().min(STEP_BYTES);
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(step)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (mut hint, rest) = (self.body.size_hint(), self.rest.len() as u64);
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + rest);
        }
        hint.set_lower(hint.lower() + rest);
        hint
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    #[tokio::test]
    async fn a_connection_with_a_request_in_progress_is_not_idle() {
        let activity = Activity::new();
        let short = Duration::from_millis(1);
        let answering = activity.answer();
        let waited = tokio::time::timeout(short * 50, activity.idle(short)).await;
        assert!(
            waited.is_err(),
            "a request in progress ended the wait for an idle connection"
        );
        drop(answering);
        activity.idle(short).await;
    }

    #[tokio::test]
    async fn a_body_is_the_same_in_steps() {
        let bytes = Bytes::from(vec![7; 3 * STEP_BYTES + 1]);
        let mut watched = Watched::new(bytes.clone().into(), Activity::new());
        assert_eq!(watched.size_hint().exact(), Some(bytes.len() as u64));
        let first = watched.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(first.len(), STEP_BYTES);
        let rest = bytes.len() - STEP_BYTES;
        assert_eq!(watched.size_hint().exact(), Some(rest as u64));
        assert_eq!(watched.collect().await.unwrap().to_bytes().len(), rest);
        let mut empty = Watched::new(Bytes::new().into(), Activity::new());
        assert!(empty.is_end_stream() && empty.frame().await.is_none());
    }
}
