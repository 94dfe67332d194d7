//! `casemate-gateway`: the supervisor starts it and controls it over descriptor 0.
#![forbid(unsafe_code)]

use std::error::Error;
use std::process::ExitCode;

use casemate_gateway::run::RunError;
use casemate_gateway::start::{self, Prepared};
use tracing_subscriber::EnvFilter;

/// The supervisor is gone, or breaks the protocol.
const EXIT_ALONE: u8 = 1;
/// `EX_SOFTWARE`: a fault of the gateway itself.
const EXIT_SOFTWARE: u8 = 70;

fn main() -> ExitCode {
    if answer_by_hand() {
        return ExitCode::SUCCESS;
    }
    log();
    // Asked before the sandbox closes, because the answer comes from files. Half of the processors
    // is left to the functions; more threads would have little to do, and would spend it on waking
    // each other.
    let threads = std::thread::available_parallelism().map_or(1, |count| count.get().div_ceil(2));
    let prepared = match start::prepare() {
        Ok(prepared) => prepared,
        Err(error) => {
            tracing::error!(%error, "the gateway did not start");
            return ExitCode::from(error.exit_code());
        }
    };
    match serve(prepared, threads) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(
                error = &error as &dyn Error,
                "the gateway ended with an error"
            );
            ExitCode::from(match error {
                RunError::Alone | RunError::Control(_) => EXIT_ALONE,
                RunError::Socket(_) | RunError::Tls(_) | RunError::Random => EXIT_SOFTWARE,
            })
        }
    }
}

fn serve(prepared: Prepared, threads: usize) -> Result<(), RunError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()?;
    let ended = runtime.block_on(casemate_gateway::run::run(prepared));
    // Connections that outlast the grace time end with the process.
    runtime.shutdown_background();
    ended
}

/// Answers a person who runs this program by hand; returns whether that was so.
fn answer_by_hand() -> bool {
    let text = match std::env::args().nth(1).as_deref() {
        Some("--version" | "-V") => format!("casemate-gateway {}", env!("CARGO_PKG_VERSION")),
        Some("--help" | "-h") => "casemate-gateway takes the callers of a node's functions. \
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
        .with_writer(std::io::stderr)
        .with_env_filter(filter);
    if std::env::var("CASEMATE_LOG_FORMAT").is_ok_and(|format| format == "json") {
        subscriber.json().init();
    } else {
        subscriber.with_ansi(false).init();
    }
}
