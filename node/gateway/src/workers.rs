//! The shell around [`crate::pool`]: functions with live channels, slots in workers, and notices to
//! waiting callers.

use std::collections::HashMap;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use casemate_channel::Opener;
use casemate_channel::budget::Budget;
use casemate_wire::StreamId;
use casemate_wire::channel::MAX_STREAMS;
use casemate_wire::control::gateway::{Shares, WorkerFault};
use casemate_wire::control::{Digest, Failure, FunctionKey, WorkerId};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, oneshot};

use crate::answer::Refusal;
use crate::pool::{Due, Pool, Waiting};
use crate::requests::{Requests, Tenant};
pub use crate::worker::{Promise, Worker};

/// How long a request waits for a worker: a cold start takes milliseconds, a full node needs
/// longer.
pub const WAIT_MAX: Duration = Duration::from_secs(10);
/// Time from a worker's notice that it takes no more requests until it must have ended: requests
/// that it has begun may take the time that the supervisor gives a worker to stop.
const GOING_AWAY: Duration = Duration::from_secs(15);
/// How long after its channel has closed a worker's reason can come.
const REASON_KEPT: Duration = Duration::from_secs(10);

/// Pause between two records about dropped cookies in a function's log, milliseconds.
const COOKIES_PERIOD_MS: u64 = 10_000;

/// Milliseconds since the first call.
pub fn now_ms() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_millis() as u64
}

type Answer = Result<Lease, Refusal>;

/// A caller that waits for a worker.
#[derive(Debug)]
struct Caller(oneshot::Sender<Answer>);

impl Waiting for Caller {
    fn is_waiting(&self) -> bool {
        !self.0.is_closed()
    }
}

/// A function with its workers.
#[derive(Debug)]
pub struct Function {
    /// Key of the function.
    pub key: FunctionKey,
    /// The requests in flight of its tenant.
    pub tenant: Arc<Tenant>,
    pool: Mutex<Pool<Caller, Arc<Worker>>>,
    /// The budget of the function's access records.
    records: Mutex<Budget>,
    cookies: DroppedCookies,
    bell: Arc<Bell>,
    /// Whether the bell holds the function already.
    rung: AtomicBool,
}

/// Dropped cookies that the function's log does not show yet, and the time of the last record; 0:
/// never.
#[derive(Debug, Default)]
struct DroppedCookies {
    count: AtomicU32,
    told_ms: AtomicU64,
}

/// Functions with a report for the supervisor that is due at once; each function is in it at most
/// once.
#[derive(Debug, Default)]
pub struct Bell {
    functions: Mutex<Vec<Arc<Function>>>,
    /// Workers that the gateway has given up, each at most once.
    unusable: Mutex<Vec<(WorkerId, WorkerFault)>>,
    notify: Notify,
}

impl Bell {
    /// Waits until a function is in the bell.
    pub async fn rung(&self) {
        self.notify.notified().await;
    }

    /// Takes the functions in the bell.
    pub fn take(&self) -> Vec<Arc<Function>> {
        let functions = std::mem::take(&mut *lock(&self.functions));
        for function in &functions {
            function.rung.store(false, Ordering::Release);
        }
        functions
    }

    /// Asks the supervisor to end a worker that gets no more requests.
    fn give_up(&self, worker: WorkerId, fault: WorkerFault) {
        lock(&self.unusable).push((worker, fault));
        self.notify.notify_one();
    }

    /// Takes the workers that were given up since the last call.
    pub fn take_unusable(&self) -> Vec<(WorkerId, WorkerFault)> {
        std::mem::take(&mut *lock(&self.unusable))
    }
}

/// A slot in a worker; dropping it frees the slot.
#[derive(Debug)]
pub struct Lease {
    function: Arc<Function>,
    /// The worker.
    pub worker: Arc<Worker>,
}

impl Lease {
    /// Waits for the head of a response within the wall-clock limit of the release. A worker that
    /// exceeds it gets no more requests, and the supervisor ends it.
    ///
    /// # Errors
    /// The error of the conversation, or [`Failure::ExceededWall`] when it takes too long.
    pub async fn hold_to_wall<T, E: From<Failure>>(
        &self,
        conversation: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        match tokio::time::timeout(self.worker.head_wait(), conversation).await {
            Ok(Ok(head)) => {
                self.worker.answered();
                Ok(head)
            }
            Ok(Err(error)) => Err(error),
            Err(_) => {
                self.function.give_up(&self.worker);
                Err(Failure::ExceededWall.into())
            }
        }
    }

    /// The function that the worker runs.
    pub fn function(&self) -> &Function {
        &self.function
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let (grants, drained) = {
            let mut pool = self.function.pool();
            (
                pool.release(self.worker.id, now_ms()),
                pool.is_drained(self.worker.id),
            )
        };
        self.function.hand_out(grants);
        if drained {
            self.function.ring();
        }
    }
}

impl Function {
    fn new(key: FunctionKey, tenant: Arc<Tenant>, bell: Arc<Bell>) -> Self {
        Self {
            key,
            tenant,
            pool: Mutex::default(),
            records: Mutex::new(Budget::new(now_ms())),
            cookies: DroppedCookies::default(),
            bell,
            rung: AtomicBool::new(false),
        }
    }

    fn pool(&self) -> MutexGuard<'_, Pool<Caller, Arc<Worker>>> {
        lock(&self.pool)
    }

    fn ring(self: &Arc<Self>) {
        if !self.rung.swap(true, Ordering::AcqRel) {
            lock(&self.bell.functions).push(self.clone());
            self.bell.notify.notify_one();
        }
    }

    /// Whether the function's log has a budget for one more access record with a path of `bytes`
    /// bytes, and how many records were left out before.
    pub fn may_record(&self, bytes: usize) -> Option<u32> {
        lock(&self.records).spend(bytes, now_ms())
    }

    /// Counts cookies of a response that were dropped because other hosts would have got them.
    pub fn dropped_cookies(&self, count: u32) {
        if count > 0 {
            self.cookies.count.fetch_add(count, Ordering::Relaxed);
        }
    }

    /// Takes the number of dropped cookies for the function's log; mostly zero.
    pub fn take_dropped_cookies(&self) -> u32 {
        let DroppedCookies { count, told_ms } = &self.cookies;
        if count.load(Ordering::Relaxed) == 0 {
            return 0;
        }
        let (now_ms, told) = (now_ms().max(1), told_ms.load(Ordering::Relaxed));
        if told > 0 && now_ms.saturating_sub(told) < COOKIES_PERIOD_MS {
            return 0;
        }
        told_ms.store(now_ms, Ordering::Relaxed);
        count.swap(0, Ordering::Relaxed)
    }

    /// Takes a slot in a worker; waits for one up to [`WAIT_MAX`].
    ///
    /// # Errors
    /// No worker became available.
    pub async fn lease(self: &Arc<Self>) -> Answer {
        let receiver = {
            let mut pool = self.pool();
            if let Some(worker) = pool.acquire() {
                return Ok(Lease {
                    function: self.clone(),
                    worker,
                });
            }
            let (sender, receiver) = oneshot::channel();
            pool.wait(Caller(sender))
                .map_err(|_| Failure::Unavailable)?;
            receiver
        };
        self.ring();
        match tokio::time::timeout(WAIT_MAX, receiver).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) | Err(_) => Err(Failure::Unavailable.into()),
        }
    }

    /// Not under the lock: a caller that has left meanwhile frees the slot at once.
    fn hand_out(self: &Arc<Self>, grants: Vec<(Caller, Arc<Worker>)>) {
        for (Caller(sender), worker) in grants {
            drop(sender.send(Ok(Lease {
                function: self.clone(),
                worker,
            })));
        }
    }

    /// Takes the worker of this slot out of service, because its channel takes no streams.
    pub fn pass_over(self: &Arc<Self>, lease: Lease) {
        if lease.worker.opener.is_closed() {
            self.without(lease.worker.id);
        } else {
            self.pool().retire(lease.worker.id);
        }
    }

    /// Takes a worker that has not answered in time out of service, and asks the supervisor to end
    /// it.
    fn give_up(&self, worker: &Worker) {
        if !worker.is_given_up_now() {
            return;
        }
        tracing::warn!(
            worker = worker.id.0,
            "a worker did not answer within its wall-clock limit; it gets no more requests and will be ended"
        );
        self.pool().retire(worker.id);
        self.bell.give_up(worker.id, WorkerFault::NotAnswering);
    }

    fn without(self: &Arc<Self>, id: WorkerId) {
        // Dropped after the lock is released.
        let worker = self.pool().remove(id);
        drop(worker);
        self.ring();
    }

    /// The reports that are due to the supervisor.
    pub fn due(&self) -> Due {
        self.pool().due(now_ms())
    }
}

/// All functions. Used by control messages and once a second, never by a request.
#[derive(Debug)]
pub struct Registry {
    functions: Mutex<HashMap<FunctionKey, Arc<Function>>>,
    /// Tenants with functions. Locked only by a holder of `functions`.
    tenants: Mutex<HashMap<Digest, Weak<Tenant>>>,
    requests: Arc<Requests>,
    seats: Mutex<HashMap<WorkerId, Seat>>,
    /// Notified when a report to the supervisor is due.
    pub bell: Arc<Bell>,
}

impl Registry {
    /// Starts without functions.
    pub fn new(shares: &Shares) -> Self {
        Self {
            functions: Mutex::default(),
            tenants: Mutex::default(),
            requests: Requests::new(shares),
            seats: Mutex::default(),
            bell: Arc::default(),
        }
    }

    /// The function of this name; it is made when there is none.
    pub fn function(&self, key: &FunctionKey) -> Arc<Function> {
        let mut functions = lock(&self.functions);
        let make = || {
            let tenant = self.tenant(key.tenant);
            Arc::new(Function::new(key.clone(), tenant, self.bell.clone()))
        };
        functions.entry(key.clone()).or_insert_with(make).clone()
    }

    fn tenant(&self, id: Digest) -> Arc<Tenant> {
        let mut tenants = lock(&self.tenants);
        let known = tenants.get(&id).and_then(Weak::upgrade);
        known.unwrap_or_else(|| {
            let tenant = self.requests.tenant();
            tenants.insert(id, Arc::downgrade(&tenant));
            tenant
        })
    }

    /// All functions.
    pub fn all(&self) -> Vec<Arc<Function>> {
        lock(&self.functions).values().cloned().collect()
    }

    /// Removes functions without hosts, workers and callers.
    pub fn forget_what_is_over(&self) {
        // Another holder is about to route to the function, or to add a worker: it must stay the
        // only function of its name.
        lock(&self.functions)
            .retain(|_, function| Arc::strong_count(function) > 1 || !function.pool().is_over());
        lock(&self.tenants).retain(|_, tenant| tenant.strong_count() > 0);
    }

    /// Makes this the wanted release of the function; `None` removes the function.
    pub fn want(&self, key: &FunctionKey, release: Option<Digest>) -> Arc<Function> {
        let function = self.function(key);
        let grants = function.pool().want(release);
        function.hand_out(grants);
        if release.is_none() {
            self.refuse(key, &Failure::Unavailable.into());
        }
        function.ring();
        function
    }

    /// Adds a worker that is ready to serve.
    ///
    /// # Errors
    /// The descriptor is not a channel.
    pub fn add(
        self: &Arc<Self>,
        key: &FunctionKey,
        release: Digest,
        id: WorkerId,
        promise: Promise,
        fd: OwnedFd,
    ) -> std::io::Result<()> {
        let socket = fd.as_fd().try_clone_to_owned()?;
        let opener = casemate_channel::opener(fd)?;
        let worker = Arc::new(Worker::new(id, opener.clone(), socket, promise.wall));
        let function = self.function(key);
        let seat = Seat {
            function: function.clone(),
            worker: Arc::downgrade(&worker),
        };
        lock(&self.seats).insert(id, seat);
        tokio::spawn(self.clone().watch(id, opener));
        let concurrency = promise.concurrency.min(MAX_STREAMS as u32);
        let grants = function
            .pool()
            .add(id, release, concurrency, worker, now_ms());
        function.hand_out(grants);
        function.ring();
        Ok(())
    }

    /// Takes the worker out of rotation: it gets no new request.
    pub fn retire(&self, id: WorkerId) {
        let function = lock(&self.seats).get(&id).map(|seat| seat.function.clone());
        if let Some(function) = function {
            function.pool().retire(id);
            function.ring();
        }
    }

    /// The worker is about to end: it gets no new request, and requests that it has not begun go to
    /// other workers.
    pub fn dying(&self, id: WorkerId, begun: StreamId) {
        let worker = lock(&self.seats).get(&id).map(|seat| seat.worker.clone());
        self.retire(id);
        if let Some(worker) = worker.as_ref().and_then(Weak::upgrade) {
            worker.dying(begun);
        }
    }

    /// The worker's process has ended; its callers get the reason.
    pub fn gone(&self, id: WorkerId, failure: Failure) {
        let Some(seat) = lock(&self.seats).remove(&id) else {
            return;
        };
        if let Some(worker) = seat.worker.upgrade() {
            worker.ended(failure);
        }
        seat.function.without(id);
    }

    /// Passes the supervisor's refusal to all callers that wait for this function.
    pub fn refuse(&self, key: &FunctionKey, refusal: &Refusal) {
        let callers = self.function(key).pool().dismiss();
        for Caller(sender) in callers {
            drop(sender.send(Err(refusal.clone())));
        }
    }

    /// Takes a worker out of service that takes no more requests, or whose channel closes. Its
    /// reason may follow; a process that runs on without a channel is useless and is ended.
    async fn watch(self: Arc<Self>, id: WorkerId, opener: Opener) {
        opener.goes_away().await;
        self.retire(id);
        let ended = tokio::time::timeout(GOING_AWAY, opener.closed()).await;
        if ended.is_err() {
            self.bell.give_up(id, WorkerFault::ChannelClosed);
            opener.closed().await;
        }
        drop(opener);
        let function = lock(&self.seats).get(&id).map(|seat| seat.function.clone());
        if let Some(function) = function {
            function.without(id);
        }
        tokio::time::sleep(crate::worker::REASON_WAIT).await;
        if lock(&self.seats).contains_key(&id) {
            self.bell.give_up(id, WorkerFault::ChannelClosed);
        }
        tokio::time::sleep(REASON_KEPT).await;
        lock(&self.seats).remove(&id);
    }
}

/// Where a worker belongs.
#[derive(Debug)]
struct Seat {
    function: Arc<Function>,
    worker: Weak<Worker>,
}

/// A panic in a holder of a lock leaves consistent state: every method completes its change.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry() -> Arc<Registry> {
        Arc::new(Registry::new(&Shares {
            connections_per_network: 1,
            network_prefix_v4: 24,
            network_prefix_v6: 56,
            requests: 1,
            requests_per_tenant: 1,
        }))
    }

    #[tokio::test(start_paused = true)]
    async fn a_worker_that_does_not_answer_gets_nothing_more_and_is_reported_once() {
        let (registry, release, id) = (registry(), [7; 32], WorkerId(1));
        let key = FunctionKey {
            tenant: [1; 32],
            function: "f".into(),
        };
        let function = registry.want(&key, Some(release));
        let (ours, _theirs) = casemate_channel::pair().unwrap();
        let promise = Promise {
            concurrency: 8,
            wall: Duration::from_secs(30),
        };
        registry.add(&key, release, id, promise, ours).unwrap();
        let (first, second) = (
            function.lease().await.unwrap(),
            function.lease().await.unwrap(),
        );
        let third = function.lease().await.unwrap();
        let started = tokio::time::Instant::now();
        let answered = third.hold_to_wall(async { Ok::<_, Refusal>(()) });
        answered.await.unwrap();
        let never = || std::future::pending::<Result<(), Refusal>>();
        let exceeded = Err(Failure::ExceededWall.into());
        assert_eq!(first.hold_to_wall(never()).await, exceeded);
        assert_eq!(second.hold_to_wall(never()).await, exceeded);
        assert_eq!(
            started.elapsed(),
            Duration::from_secs(80),
            "each waits 40 s once one was answered"
        );
        let given_up = registry.bell.take_unusable();
        assert_eq!(given_up, [(id, WorkerFault::NotAnswering)]);
        assert_eq!(
            function.lease().await.unwrap_err(),
            Failure::Unavailable.into()
        );
        drop((first, second, third));
        assert!(function.due().drained.contains(&id));
    }

    #[tokio::test(start_paused = true)]
    async fn a_worker_that_goes_away_and_stays_is_reported() {
        let (registry, release, id) = (registry(), [7; 32], WorkerId(1));
        let key = FunctionKey {
            tenant: [1; 32],
            function: "f".into(),
        };
        let function = registry.want(&key, Some(release));
        let (ours, theirs) = casemate_channel::pair().unwrap();
        let promise = Promise {
            concurrency: 8,
            wall: Duration::from_secs(30),
        };
        registry.add(&key, release, id, promise, ours).unwrap();
        let acceptor = casemate_channel::acceptor(theirs).unwrap();
        acceptor.go_away();
        while !function.due().drained.contains(&id) {
            tokio::task::yield_now().await;
        }
        assert_eq!(registry.bell.take_unusable(), []);
        tokio::time::sleep(GOING_AWAY + Duration::from_secs(1)).await;
        let unusable = [(id, WorkerFault::ChannelClosed)];
        assert_eq!(registry.bell.take_unusable(), unusable);
    }

    #[test]
    fn a_function_that_somebody_is_about_to_use_is_not_forgotten() {
        let registry = registry();
        let key = FunctionKey {
            tenant: [1; 32],
            function: "f".into(),
        };
        let function = registry.function(&key);
        registry.forget_what_is_over();
        assert!(Arc::ptr_eq(&function, &registry.function(&key)));
        drop(function);
        registry.forget_what_is_over();
        assert!(registry.all().is_empty());
        registry.forget_what_is_over();
        assert!(lock(&registry.tenants).is_empty());
    }
}
