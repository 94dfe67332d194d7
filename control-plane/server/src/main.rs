//! casemate-control: the control plane.
#![forbid(unsafe_code)]

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use casemate_control::{Config, Failure};
use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// The control plane of a Casemate fleet
#[derive(Parser)]
#[command(name = "casemate-control", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a state folder: keys, an empty store, the first operator token
    Init {
        /// The folder; it must not be there yet, or be empty
        #[arg(long, value_name = "DIR")]
        state: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Run
    Serve {
        /// The configuration
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
}

/// Exit code of a wrong command line (sysexits `EX_USAGE`).
const USAGE: u8 = 64;

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version are no mistakes.
            let code = if error.use_stderr() { USAGE } else { 0 };
            error.print().ok();
            return ExitCode::from(code);
        }
    };
    match run(arguments.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { code, message }) => {
            writeln!(std::io::stderr(), "casemate-control: {message}").ok();
            ExitCode::from(code)
        }
    }
}

fn run(command: Command) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let runtime = runtime.map_err(|error| Failure {
        code: 71,
        message: format!("cannot start threads: {error}"),
    })?;
    match command {
        Command::Init { state, json } => {
            log(None)?;
            let made = runtime.block_on(casemate_control::init(&state))?;
            let text = if json {
                serde_json::to_string(&made).unwrap_or_default()
            } else {
                let (state, public, token) = (
                    made.state.display(),
                    made.public_file.display(),
                    made.operator_token_file.display(),
                );
                format!(
                    "made {state}\n  public keys:    {public}\n  operator token: {token} (keep it; it is shown nowhere else)\n\
                     next: `casemate-control serve --config control.toml`, then `casemate fleet init` on the operator's machine"
                )
            };
            writeln!(std::io::stdout(), "{text}").ok();
            Ok(())
        }
        Command::Serve { config } => {
            let config = Config::load(&config)?;
            log(config.log.as_deref())?;
            runtime.block_on(async {
                let failed = |error| Failure {
                    code: 71,
                    message: format!("cannot listen for signals: {error}"),
                };
                let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
                let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
                let stop = async move {
                    tokio::select! {
                        _ = terminate.recv() => {}
                        _ = interrupt.recv() => {}
                    }
                };
                casemate_control::serve(config, stop).await
            })
        }
    }
}

/// Logs to standard error; `CASEMATE_LOG` filters, `CASEMATE_LOG_FORMAT=json` is for machines.
fn log(filter: Option<&str>) -> Result<(), Failure> {
    let text = std::env::var("CASEMATE_LOG").ok();
    let text = text.as_deref().or(filter).unwrap_or("info");
    let filter = EnvFilter::try_new(text).map_err(|error| Failure {
        code: USAGE,
        message: format!("the log filter {text:?}: {error}"),
    })?;
    // A reader that has gone takes the log with it, not the program.
    let subscriber = tracing_subscriber::fmt()
        .log_internal_errors(false)
        .with_ansi(std::io::stderr().is_terminal())
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    if std::env::var("CASEMATE_LOG_FORMAT").is_ok_and(|format| format == "json") {
        subscriber.json().init();
    } else {
        subscriber.init();
    }
    Ok(())
}
