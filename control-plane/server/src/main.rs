//! casemate-control: the control plane.
#![forbid(unsafe_code)]

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use casemate_control::{BackupOutcome, Config, Failure, Progress};
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
        /// The folder; it must not exist yet, or be empty
        #[arg(long, value_name = "DIR")]
        state: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Copy the state into a new folder, whether or not the control plane runs: store, bundles and the control plane's keys
    Backup {
        /// The state folder
        #[arg(long, value_name = "DIR")]
        state: PathBuf,
        /// The folder for the backup; it must not exist yet, or be empty
        #[arg(long, value_name = "DIR")]
        to: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Make a state folder from a backup
    Restore {
        /// The backup
        #[arg(long, value_name = "DIR")]
        from: PathBuf,
        /// The state folder; it must not exist yet, or be empty
        #[arg(long, value_name = "DIR")]
        state: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Run the control plane
    Serve {
        /// The configuration
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
}

/// Exit code of a wrong command line (sysexits `EX_USAGE`).
const USAGE: u8 = 64;
/// Exit code of a copy whose original was damaged (sysexits `EX_DATAERR`).
const DATA: u8 = 65;

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version are not mistakes.
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
    match command {
        Command::Backup { state, to, json } => {
            log(None)?;
            let made = casemate_control::backup(&state, &to, &mut tell())?;
            say_backup(&made, json, "backup of");
            incomplete(&made)
        }
        Command::Restore { from, state, json } => {
            log(None)?;
            let made = casemate_control::restore(&from, &state, &mut tell())?;
            say_backup(&made, json, "restored the backup of");
            let next = "next: start the control plane on it, then run `casemate fleet publish` at once on the machine with the root \
                        key: it uploads what is newer than the backup and revokes again what was revoked since";
            writeln!(std::io::stderr(), "{next}").ok();
            incomplete(&made)
        }
        Command::Init { state, json } => init(&state, json),
        Command::Serve { config } => serve(&config),
    }
}

/// Shows the progress of a long step: on a terminal in place, otherwise a line for each tenth.
fn tell() -> impl FnMut(Progress) {
    let is_terminal = std::io::stderr().is_terminal();
    let mut told = None;
    move |Progress { doing, done, total }| {
        let tenth = done.saturating_mul(10) / total.max(1);
        if told == Some((doing, tenth)) {
            return;
        }
        told = Some((doing, tenth));
        let (begin, end) = if is_terminal {
            ("\r\u{1b}[K", "")
        } else {
            ("", "\n")
        };
        let end = if is_terminal && done == total {
            "\n"
        } else {
            end
        };
        write!(std::io::stderr(), "{begin}{doing}: {done} of {total}{end}").ok();
    }
}

fn say_backup(made: &BackupOutcome, json: bool, what: &str) {
    let label = &made.backup;
    let text = if json {
        serde_json::to_string(made).expect("plain data is JSON")
    } else {
        let audit = if made.audit_intact {
            "unbroken"
        } else {
            "BROKEN"
        };
        format!(
            "{what} revision {}: {} entries, {} bundles ({} MiB), audit chain {audit}, checked\n  in {}",
            label.revision,
            label.entries,
            label.bundles,
            label.bundle_bytes.div_ceil(1024 * 1024),
            made.folder.display()
        )
    };
    writeln!(std::io::stdout(), "{text}").ok();
}

/// The copy is in place, and incomplete.
fn incomplete(made: &BackupOutcome) -> Result<(), Failure> {
    if made.missing_bundles.is_empty() && made.audit_intact {
        return Ok(());
    }
    let lost = made.missing_bundles.iter();
    let mut lines: Vec<String> = lost
        .map(|bundle| format!("  bundle {bundle} is missing or damaged; its tenant's next deployment uploads it again"))
        .collect();
    if !made.audit_intact {
        lines.push("  the audit chain is broken: a record was changed, added or taken out".into());
    }
    Err(Failure {
        code: DATA,
        message: format!(
            "the copy is made, and lacks what the original lacked too:\n{}",
            lines.join("\n")
        ),
    })
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    runtime.map_err(|error| Failure {
        code: 71,
        message: format!("cannot start threads: {error}"),
    })
}

fn init(state: &Path, json: bool) -> Result<(), Failure> {
    log(None)?;
    let made = runtime()?.block_on(casemate_control::init(state))?;
    let text = if json {
        serde_json::to_string(&made).expect("plain data is JSON")
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

fn serve(config: &Path) -> Result<(), Failure> {
    let config = Config::load(config)?;
    log(config.log.as_deref())?;
    runtime()?.block_on(async {
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

/// Logs to standard error; `CASEMATE_LOG` filters, `CASEMATE_LOG_FORMAT=json` is for machines.
fn log(filter: Option<&str>) -> Result<(), Failure> {
    let text = std::env::var("CASEMATE_LOG").ok();
    let text = text.as_deref().or(filter).unwrap_or("info");
    let filter = EnvFilter::try_new(text).map_err(|error| Failure {
        code: USAGE,
        message: format!("the log filter {text:?}: {error}"),
    })?;
    // If the reader of the log has closed it, only the log is lost, and the program continues.
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
