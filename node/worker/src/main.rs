//! casemate-worker: one isolate, one function.
//!
//! The worker starts, closes its sandbox, and is then a spare; the supervisor's `Load` gives it a
//! function for the rest of its life. The order matters: first V8 and everything else that opens
//! files or starts threads, then the sandbox, then the first byte of tenant code.

mod account;
mod bundle;
mod call_error;
mod calls;
mod engine;
mod fields;
mod host;
mod logs;
mod outcomes;
mod past;
mod serve;
mod source_map;
mod spare;
mod state;
mod timers;

use std::process::ExitCode;
use std::time::Duration;

use tracing_subscriber::EnvFilter;

/// `EX_SOFTWARE`: a fault of the worker, not of the function.
const EXIT_SOFTWARE: u8 = 70;

/// How long the pool's thread stays without work: without end, because no thread can be started
/// inside the sandbox.
const POOL_THREAD_STAYS: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

fn main() -> ExitCode {
    if answer_by_hand() {
        return ExitCode::SUCCESS;
    }
    log();
    match start() {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            tracing::error!(error = &*error, "the worker could not start");
            ExitCode::from(EXIT_SOFTWARE)
        }
    }
}

fn start() -> Result<u8, Box<dyn std::error::Error>> {
    engine::prepare_memory()?;
    let mut layers = casemate_sandbox::before_engine()?;
    let platform = engine::initialize();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(1)
        .thread_keep_alive(POOL_THREAD_STAYS)
        .build()?;
    let code = runtime.block_on(async move {
        // The pool's one thread, for cryptography.
        tokio::task::spawn_blocking(engine::pool::adopt_thread).await??;
        let spare = spare::Spare::start(platform).await?;
        layers.extend(casemate_sandbox::close(casemate_sandbox::Profile::Worker)?);
        Ok(spare.live(layers).await)
    });
    // Its threads stay until the process ends, because the sandbox forbids the system calls with
    // which a thread ends.
    std::mem::forget(runtime);
    code
}

/// Answers a person who runs this program by hand; returns whether that was so.
fn answer_by_hand() -> bool {
    let text = match std::env::args().nth(1).as_deref() {
        Some("--version" | "-V") => format!("casemate-worker {}", env!("CARGO_PKG_VERSION")),
        Some("--help" | "-h") => "casemate-worker runs one function of one tenant. \
             It is started by casemate-launch and takes no arguments."
            .to_owned(),
        _ => return false,
    };
    // A closed standard output cannot be reported anywhere.
    let _written = std::io::Write::write_all(&mut std::io::stdout(), (text + "\n").as_bytes());
    true
}

fn log() {
    let filter = EnvFilter::try_from_env("CASEMATE_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let subscriber = tracing_subscriber::fmt()
        // Otherwise a closed standard error would cause a message on standard error, or a panic.
        .log_internal_errors(false)
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    if std::env::var("CASEMATE_LOG_FORMAT").is_ok_and(|format| format == "json") {
        subscriber.json().init();
    } else {
        // The log goes to launch or to a file, never to a terminal with colours.
        subscriber.with_ansi(false).init();
    }
}
