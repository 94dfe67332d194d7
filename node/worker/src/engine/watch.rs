//! The watch over CPU time: a thread that exists before the sandbox closes, woken by a timer that
//! counts the process's CPU time and so costs nothing while the worker is idle.
//!
//! The function's code runs on the main thread, in turns. A turn has a deadline on that thread's
//! CPU clock; beyond it the watch asks V8 to stop, and ends the process if V8 does not react, as
//! some builtins do not. The only other thread that works for the function is the pool's, for
//! cryptography; its time counts as well. Using memory takes CPU time, so the watch checks memory
//! at the same times.

use std::ffi::c_void;
use std::io;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicPtr, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use casemate_wire::control::Failure;
use deno_core::v8;

use super::{Turn, last_words, locks, memory, pool};

/// CPU time between two checks. The kernel's own tick makes it 4 ms at best.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// CPU time that V8 has to stop before the process ends: `JSON.parse` of the largest string that
/// fits takes 240 ms more.
const STOP_GRACE: Duration = Duration::from_millis(500);

/// No turn is running.
const NO_TURN: u64 = u64::MAX;
/// The watch has asked V8 to stop this turn.
const STOPPING: u64 = 0;

/// No code was stopped, or the code did not take the interrupt that identifies its request.
const NOT_KNOWN: u32 = u32::MAX;

/// State that the main thread and the watch share.
pub(crate) struct Watch {
    /// The main thread's CPU time, in ns, at which the running turn is over its limit.
    deadline_ns: AtomicU64,
    /// The time on `CLOCK_MONOTONIC`, in ns, at which it is over its limit.
    wall_deadline_ns: AtomicU64,
    /// The main thread's CPU time, in ns, at which the process ends if the turn has not.
    kill_ns: AtomicU64,
    /// Private memory, in bytes, beyond which the process ends.
    memory_bytes: AtomicUsize,
    /// Why the turn was stopped, as a reset code; 0 when it was not.
    stopped: AtomicU16,
    /// The isolate's main context, for [`stop_and_note`].
    context: AtomicPtr<v8::Global<v8::Context>>,
    /// The request whose code was running when the turn was stopped; 0 for code of no request.
    running: AtomicU32,
}

pub(crate) static WATCH: Watch = Watch {
    deadline_ns: AtomicU64::new(NO_TURN),
    wall_deadline_ns: AtomicU64::new(NO_TURN),
    kill_ns: AtomicU64::new(NO_TURN),
    memory_bytes: AtomicUsize::new(usize::MAX),
    stopped: AtomicU16::new(0),
    context: AtomicPtr::new(std::ptr::null_mut()),
    running: AtomicU32::new(NOT_KNOWN),
};

impl Watch {
    /// Starts a turn at this CPU time of the main thread. The time is passed in, because reading
    /// the clock is a system call and turns follow each other.
    pub(crate) fn begin(&self, now: Duration, cpu: Duration, wall: Duration) {
        self.wall_deadline_ns
            .store(nanos(monotonic().saturating_add(wall)), Ordering::Relaxed);
        self.deadline_ns.store(
            nanos(now.saturating_add(cpu)).max(STOPPING + 1),
            Ordering::Release,
        );
    }

    /// Ends the turn that began at `start`.
    pub(crate) fn end(&self, start: Duration) -> Turn {
        if self.deadline_ns.swap(NO_TURN, Ordering::AcqRel) == STOPPING {
            // The watch is about to record the reason. Without the wait the next turn would be
            // blamed.
            while self.stopped.load(Ordering::Acquire) == 0 {
                std::hint::spin_loop();
            }
        }
        let ended = thread_cpu();
        Turn {
            cpu: ended.saturating_sub(start),
            ended,
            stopped: Failure::from_reset(self.stopped.load(Ordering::Acquire)),
            running: Some(self.running.load(Ordering::Acquire))
                .filter(|request| *request != NOT_KNOWN),
        }
    }

    /// Records why the turn is being stopped. The first reason stays.
    pub(crate) fn stop(&self, failure: Failure) {
        let _ = self.stopped.compare_exchange(
            0,
            failure.to_reset(),
            Ordering::AcqRel,
            Ordering::Acquire,
        );
    }

    /// Sets how much memory the process may occupy.
    pub(crate) fn limit_memory(&self, bytes: usize) {
        self.memory_bytes.store(bytes, Ordering::Relaxed);
    }

    fn look(&self, main_clock: libc::clockid_t, isolate: &v8::IsolateHandle) {
        if memory::occupied() > self.memory_bytes.load(Ordering::Relaxed) {
            last_words::speak(Failure::ExceededMemory);
        }
        if pool::must_end() {
            last_words::speak(Failure::ExceededCpu);
        }
        let main = clock(main_clock);
        let deadline = self.deadline_ns.load(Ordering::Acquire);
        if deadline == NO_TURN {
            return;
        }
        if deadline == STOPPING {
            // Code that has not taken the interrupt by now may still react to termination.
            isolate.terminate_execution();
            if nanos(main) > self.kill_ns.load(Ordering::Relaxed) {
                let failure = Failure::from_reset(self.stopped.load(Ordering::Acquire));
                last_words::speak(failure.unwrap_or(Failure::ExceededCpu));
            }
            return;
        }
        let failure = if nanos(main) > deadline {
            Failure::ExceededCpu
        } else if nanos(monotonic()) > self.wall_deadline_ns.load(Ordering::Relaxed) {
            Failure::ExceededWall
        } else {
            return;
        };
        self.kill_ns
            .store(nanos(main.saturating_add(STOP_GRACE)), Ordering::Relaxed);
        // The turn has just ended: then there is nothing to stop.
        if self
            .deadline_ns
            .compare_exchange(deadline, STOPPING, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
        {
            self.stop(failure);
            isolate.request_interrupt(stop_and_note, self.context.load(Ordering::Acquire).cast());
        }
    }
}

/// Records which request's code is running, and stops it. V8 calls this on the main thread, in the
/// middle of that code.
///
/// # Safety
/// `context` points to the isolate's main context, a `v8::Global<v8::Context>`.
unsafe extern "C" fn stop_and_note(isolate: v8::UnsafeRawIsolatePtr, context: *mut c_void) {
    // SAFETY: V8 passes the isolate that it runs, for the time of this call.
    let mut isolate = unsafe { v8::Isolate::from_raw_isolate_ptr(isolate) };
    isolate.thread_safe_handle().terminate_execution();
    // SAFETY: the caller guarantees it.
    let context = unsafe { &*context.cast::<v8::Global<v8::Context>>() };
    v8::scope!(let scope, &mut isolate);
    let context = v8::Local::new(scope, context);
    let scope = &mut v8::ContextScope::new(scope, context);
    // Only `calls.js` sets this value, the number of the request.
    let data = scope.get_continuation_preserved_embedder_data();
    let request = data.try_cast::<v8::Uint32>();
    let request = request.map_or(0, |request| request.value());
    WATCH.running.store(request, Ordering::Release);
}

/// Starts the watch over the calling thread and its isolate. Everything that the watch needs exists
/// when this returns.
///
/// # Errors
/// A thread or a timer is unavailable.
pub(crate) fn start(
    isolate: v8::IsolateHandle,
    context: v8::Global<v8::Context>,
) -> io::Result<()> {
    // Never freed: the watch and its isolate live as long as the process.
    let context = Box::into_raw(Box::new(context));
    WATCH.context.store(context, Ordering::Release);
    let main_clock = thread_clock()?;
    let (ready, started) = mpsc::channel();
    std::thread::Builder::new()
        .name("watch".to_owned())
        .spawn(move || {
            locks::prepare_thread();
            let signals = match block_signal() {
                Ok(signals) => signals,
                Err(error) => return drop(ready.send(Err(error))),
            };
            // SAFETY: `gettid` takes nothing and cannot fail.
            let _ = ready.send(Ok(unsafe { libc::gettid() }));
            loop {
                let mut signal = 0;
                // SAFETY: both pointers point to live values of the right type.
                if unsafe { libc::sigwait(&raw const signals, &raw mut signal) } == 0 {
                    WATCH.look(main_clock, &isolate);
                }
            }
        })?;
    let thread = started
        .recv()
        .map_err(|_| io::Error::other("the watch did not start"))??;
    start_timer(thread)
}

/// The signal of the timer. No other code uses real-time signals.
fn signal() -> libc::c_int {
    libc::SIGRTMIN()
}

fn block_signal() -> io::Result<libc::sigset_t> {
    let mut signals = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: `sigemptyset` initialises the set, and the others then read or change it.
    let (signals, result) = unsafe {
        libc::sigemptyset(signals.as_mut_ptr());
        libc::sigaddset(signals.as_mut_ptr(), signal());
        let result = libc::pthread_sigmask(libc::SIG_BLOCK, signals.as_ptr(), std::ptr::null_mut());
        (signals.assume_init(), result)
    };
    if result == 0 {
        Ok(signals)
    } else {
        Err(io::Error::from_raw_os_error(result))
    }
}

/// A timer on the process's CPU time that signals `thread`.
fn start_timer(thread: libc::pid_t) -> io::Result<()> {
    // SAFETY: a `sigevent` of zeroes is a valid value; the fields that matter are set below.
    let mut event = unsafe { MaybeUninit::<libc::sigevent>::zeroed().assume_init() };
    event.sigev_notify = libc::SIGEV_THREAD_ID;
    event.sigev_signo = signal();
    event.sigev_notify_thread_id = thread;
    let mut timer = std::ptr::null_mut();
    // SAFETY: both pointers point to live values of the right type.
    if unsafe {
        libc::timer_create(
            libc::CLOCK_PROCESS_CPUTIME_ID,
            &raw mut event,
            &raw mut timer,
        )
    } != 0
    {
        return Err(io::Error::last_os_error());
    }
    let every = libc::timespec {
        tv_sec: 0,
        tv_nsec: LOOK_EVERY.subsec_nanos().into(),
    };
    let spec = libc::itimerspec {
        it_interval: every,
        it_value: every,
    };
    // SAFETY: the timer was just made, and the pointers are to live values or null where allowed.
    if unsafe { libc::timer_settime(timer, 0, &raw const spec, std::ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The CPU clock of the calling thread, for other threads to read.
pub(super) fn thread_clock() -> io::Result<libc::clockid_t> {
    let mut id = 0;
    // SAFETY: the calling thread lives, and the pointer is to a live value.
    match unsafe { libc::pthread_getcpuclockid(libc::pthread_self(), &raw mut id) } {
        0 => Ok(id),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// The time of a clock.
pub(super) fn clock(id: libc::clockid_t) -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the pointer points to a live value. A clock that cannot be read gives zero, which
    // stops no code too early.
    unsafe { libc::clock_gettime(id, &raw mut time) };
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or(0),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    )
}

/// CPU time of the calling thread.
pub(crate) fn thread_cpu() -> Duration {
    clock(libc::CLOCK_THREAD_CPUTIME_ID)
}

fn monotonic() -> Duration {
    clock(libc::CLOCK_MONOTONIC)
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos())
        .unwrap_or(u64::MAX - 1)
        .min(u64::MAX - 1)
}
