//! Calls under way, and the statements that each depends on: a call ends when one of these is
//! withdrawn.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::oneshot;

use super::authority::Authority;
use super::refused::Refused;

#[derive(Debug, Default)]
struct Entries {
    calls: HashMap<u64, (Authority, oneshot::Sender<Refused>)>,
    next: u64,
}

/// All calls under way.
#[derive(Debug, Default)]
pub(super) struct InFlight(Mutex<Entries>);

/// A call under way; dropping it removes the call from the list.
#[derive(Debug)]
pub(super) struct Registered {
    list: Arc<InFlight>,
    id: u64,
    ended: oneshot::Receiver<Refused>,
}

impl Registered {
    /// Waits until a statement on which the call depends is withdrawn.
    pub(super) async fn ended(&mut self) -> Refused {
        match (&mut self.ended).await {
            Ok(refused) => refused,
            // The list is never dropped before its calls, because each holds it.
            Err(_) => std::future::pending().await,
        }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.list.entries().calls.remove(&self.id);
    }
}

impl InFlight {
    /// Adds a call to the list. The caller still holds the lock under which it decided, so that no
    /// withdrawal comes in between.
    pub(super) fn register(self: &Arc<Self>, authority: Authority) -> Registered {
        let (end, ended) = oneshot::channel();
        let mut entries = self.entries();
        entries.next += 1;
        let id = entries.next;
        entries.calls.insert(id, (authority, end));
        Registered {
            list: self.clone(),
            id,
            ended,
        }
    }

    /// Ends the calls for which `check` returns a reason.
    pub(super) fn end_where(&self, check: impl Fn(&Authority) -> Result<(), Refused>) {
        let mut entries = self.entries();
        let mut over = Vec::new();
        for (id, (authority, _)) in &entries.calls {
            if let Err(refused) = check(authority) {
                over.push((*id, refused));
            }
        }
        for (id, refused) in over {
            if let Some((_, end)) = entries.calls.remove(&id) {
                // The call may have ended at this moment.
                let _heard = end.send(refused);
            }
        }
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.0.lock()
    }
}
