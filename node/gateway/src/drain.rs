//! Drains the gateway without losing a request.
//!
//! 1. **Last call.** Existing connections are asked to close: each answer over HTTP/1 has
//!    `Connection: close`, and HTTP/2 gets GOAWAY. An idle HTTP/1 connection is closed only after
//!    [`REST`], so that a request that is on its way meanwhile gets its answer. New connections are
//!    still accepted, on the same terms.
//! 2. **Closed.** Once the connections from before the last call have closed, or half of the grace
//!    time is over, no connection is accepted: new callers wait in the sockets' queues for the next
//!    gateway. Accepted connections finish within the grace time.
//!
//! So new callers do not wait for the longest request, and no connection is accepted in vain.

use std::future::Future;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::task::TaskTracker;

/// Idle time after which an HTTP/1 connection is closed. A caller that uses its connection more
/// often has had an answer with `Connection: close` by then; another caller finds it closed, as
/// after any idle timeout.
pub const REST: Duration = Duration::from_secs(2);
/// Period at which a connection is checked.
pub const LOOK_PERIOD: Duration = Duration::from_millis(50);

/// The phase of the drain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Serving,
    LastCall,
    Closed,
}

/// The state of a drain; the gateway owns it, listeners and connections run under it.
#[derive(Debug)]
pub struct Drain {
    phase: watch::Sender<Phase>,
    /// Connections from before the last call.
    early: TaskTracker,
    /// Later connections, and the listeners.
    late: TaskTracker,
}

impl Default for Drain {
    fn default() -> Self {
        Self {
            phase: watch::Sender::new(Phase::Serving),
            early: TaskTracker::new(),
            late: TaskTracker::new(),
        }
    }
}

impl Drain {
    /// Runs a listener, which ends when [`Self::closes`] completes.
    pub fn listens(&self, listener: impl Future<Output = ()> + Send + 'static) {
        self.late.spawn(listener);
    }

    /// Runs a connection that a listener has accepted.
    pub fn connects(&self, connection: impl Future<Output = ()> + Send + 'static) {
        if self.has_begun() {
            self.late.spawn(connection);
        } else {
            self.early.spawn(connection);
        }
    }

    /// Whether the last call has begun.
    pub fn has_begun(&self) -> bool {
        *self.phase.borrow() > Phase::Serving
    }

    /// Waits for the last call.
    pub async fn begins(&self) {
        self.comes_to(Phase::LastCall).await;
    }

    /// Waits until connections are no longer accepted.
    pub async fn closes(&self) {
        self.comes_to(Phase::Closed).await;
    }

    async fn comes_to(&self, wanted: Phase) {
        let mut phase = self.phase.subscribe();
        // Fails only when the sender is dropped, which we own.
        let _ = phase.wait_for(|phase| *phase >= wanted).await;
    }

    /// Runs through the phases; returns whether all connections ended within `grace`.
    pub async fn run(&self, grace: Duration) -> bool {
        let end = Instant::now() + grace;
        self.phase.send_replace(Phase::LastCall);
        self.early.close();
        // Connections that remain are waited for again below.
        let _left = timeout(grace / 2, self.early.wait()).await;
        self.phase.send_replace(Phase::Closed);
        self.late.close();
        let all = async {
            // The listeners first: until they have ended, connections may be added.
            self.late.wait().await;
            self.early.wait().await;
        };
        timeout_at(end, all).await.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::oneshot;

    use super::*;

    const GRACE: Duration = Duration::from_secs(10);

    /// A connection that ends when the sender is dropped.
    fn connection(drain: &Drain) -> oneshot::Sender<()> {
        let (end, ended) = oneshot::channel::<()>();
        drain.connects(async move {
            let _ = ended.await;
        });
        end
    }

    fn run(drain: &Arc<Drain>) -> tokio::task::JoinHandle<bool> {
        let drain = drain.clone();
        tokio::spawn(async move { drain.run(GRACE).await })
    }

    #[tokio::test(start_paused = true)]
    async fn callers_are_accepted_until_those_before_the_last_call_have_gone() {
        let drain = Arc::new(Drain::default());
        let listener = drain.clone();
        drain.listens(async move { listener.closes().await });
        let (first, second) = (connection(&drain), connection(&drain));
        let running = run(&drain);
        drain.begins().await;
        drop(first);
        let late = connection(&drain);
        let still = timeout(GRACE / 4, drain.closes()).await;
        assert!(still.is_err(), "one of the early ones is there");
        drop(second);
        drain.closes().await;
        assert!(!running.is_finished(), "the late one is waited for");
        drop(late);
        assert!(running.await.unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_stays_delays_new_callers_for_half_of_the_grace_time() {
        let (drain, began) = (Arc::new(Drain::default()), Instant::now());
        let stays = connection(&drain);
        let running = run(&drain);
        drain.closes().await;
        assert_eq!(began.elapsed().as_secs(), GRACE.as_secs() / 2);
        assert!(!running.await.unwrap());
        assert_eq!(began.elapsed().as_secs(), GRACE.as_secs());
        drop(stays);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_a_listener_accepts_last_is_waited_for() {
        let drain = Arc::new(Drain::default());
        let (end, ended) = oneshot::channel::<()>();
        let listener = drain.clone();
        drain.listens(async move {
            listener.closes().await;
            // Accepted before the listener saw the end.
            listener.connects(async move {
                let _ = ended.await;
            });
        });
        let running = run(&drain);
        drain.closes().await;
        let waits = timeout(GRACE / 4, async {
            while !running.is_finished() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        assert!(waits.await.is_err());
        drop(end);
        assert!(running.await.unwrap());
    }
}
