//! casemate-launch: the only privileged program of a node. It starts the supervisor, then programs
//! at its command, each in its sandbox; reaps them; and ends together with them.
//!
//! As root, it gives every program a user id of its own. Otherwise all programs run as launch's own
//! user, and only user namespaces separate workers from the rest. Launch parses only its own
//! arguments, the two numbers that describe the passed descriptors, and packets of 64 bytes.

mod cgroup;
mod child;
mod folders;
mod manager;
mod serve;
mod sockets;
mod start;
mod upgrade;
mod walls;

use std::fs;
use std::io::IsTerminal;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::ExitCode;

use casemate_sandbox::launch::CHILDREN_MAX;
use clap::Parser;
use rustix::fs::Mode;
use tracing_subscriber::EnvFilter;

use crate::manager::Manager;
use crate::serve::Outcome;
use crate::sockets::Sockets;
use crate::start::Launcher;
use crate::upgrade::Successor;

/// Exit codes of sysexits.h.
mod exit {
    pub(crate) const USAGE: u8 = 64;
    pub(crate) const UNAVAILABLE: u8 = 69;
    pub(crate) const SOFTWARE: u8 = 70;
    pub(crate) const CANNOT_CREATE: u8 = 73;
    pub(crate) const TEMPORARY: u8 = 75;
}

/// Offsets of user ids from the base: the supervisor, the vault and the gateway have one each,
/// workers begin at a thousand.
mod uid {
    pub(crate) const SUPERVISOR: u32 = 1;
    pub(crate) const VAULT: u32 = 2;
    pub(crate) const GATEWAY: u32 = 3;
    pub(crate) const FIRST_WORKER: u32 = 1000;
}

/// The highest base such that all ids stay below the kernel's invalid ones.
const UID_BASE_MAX: i64 = u32::MAX as i64 - uid::FIRST_WORKER as i64 - CHILDREN_MAX as i64 - 2;

/// Starts a node's programs, each in its own sandbox, and ends with them.
#[derive(Debug, Parser)]
#[command(name = "casemate-launch", version)]
struct Args {
    /// Configuration of the supervisor; user id BASE+1 must be able to read it
    #[arg(long, value_name = "FILE")]
    node: PathBuf,
    /// Configuration of the vault; user id BASE+2 must be able to read it
    #[arg(long, value_name = "FILE")]
    vault: PathBuf,
    /// Folder of the node's state; the programs must be able to pass through the folders above it
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
    /// Where init describes the machine, on a machine that boots images; user id BASE+1 must be able to read its folder
    #[arg(long, value_name = "FILE")]
    machine: Option<PathBuf>,
    /// Folder of the node's programs; by default the folder of casemate-launch
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
    /// First of the 5096 user and group ids that belong to this node alone; ignored unless run as root
    #[arg(long, value_name = "BASE", default_value_t = 700_000, value_parser = clap::value_parser!(u32).range(1000..=UID_BASE_MAX))]
    uid_base: u32,
}

fn main() -> ExitCode {
    // Before anything else, so that no descriptor, file mode or privilege of our parent remains.
    let passed = match sanitise() {
        Ok(passed) => passed,
        Err(error) => {
            log();
            tracing::error!(%error, "cannot sanitise this process");
            return exit::UNAVAILABLE.into();
        }
    };
    log();
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() {
                exit::USAGE.into()
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    match run(&args, passed) {
        Ok(code) => code.into(),
        Err(refusal) => {
            let cause = std::error::Error::source(&refusal).map(ToString::to_string);
            tracing::error!(cause, "{refusal}");
            refusal.code().into()
        }
    }
}

fn run(args: &Args, passed: Vec<OwnedFd>) -> Result<u8, Refused> {
    let missing = |source, path: &PathBuf| Refused::Configuration {
        path: path.clone(),
        source,
    };
    let node = fs::canonicalize(&args.node).map_err(|source| missing(source, &args.node))?;
    let vault = fs::canonicalize(&args.vault).map_err(|source| missing(source, &args.vault))?;

    // Not the file itself, which may not exist yet, but its future path.
    let machine = args.machine.as_ref().map(std::path::absolute).transpose();
    let machine = machine.map_err(|source| missing(source, &args.state))?;

    let as_root = rustix::process::geteuid().is_root();
    let base = as_root.then_some(args.uid_base);

    let state = folders::prepare(&args.state, base).map_err(|source| Refused::State {
        path: args.state.clone(),
        source,
    })?;

    let programs = match &args.programs {
        Some(folder) => folder.clone(),
        None => std::env::current_exe()
            .ok()
            .and_then(|path| Some(path.parent()?.to_owned()))
            .unwrap_or_default(),
    };
    start::protect_launch();
    let successor = Successor::find(&programs).map_err(|source| Refused::Step {
        step: "find our own program",
        source,
    })?;
    let launcher = Launcher::new(&programs, (&node, machine.as_deref()), &vault, &state, base)?;
    let sockets = Sockets::passed(passed, Manager::from_environment());
    match serve::serve(launcher, sockets, successor.clone())? {
        Outcome::Exit(code) => Ok(code),
        Outcome::Upgrade(sockets) => {
            tracing::info!(
                sockets = sockets.len(),
                "all programs have ended; launch executes its program file again"
            );
            let error = successor.become_it(sockets.into_descriptors());
            tracing::error!(%error, "cannot execute the program file again");
            Ok(exit::SOFTWARE)
        }
    }
}

/// Why launch does not start.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("cannot read the configuration {path}")]
    Configuration {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot prepare the state folder {path}")]
    State {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot open the program {path}")]
    Program {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot {step}")]
    Step {
        step: &'static str,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot start the supervisor")]
    Supervisor(#[source] start::StartError),
}

impl Refused {
    fn code(&self) -> u8 {
        match self {
            Self::Configuration { .. } => exit::USAGE,
            Self::State { .. } => exit::CANNOT_CREATE,
            Self::Program { .. } | Self::Step { .. } | Self::Supervisor(_) => exit::UNAVAILABLE,
        }
    }
}

/// Returns the descriptors that were passed to this process; all others are closed.
fn sanitise() -> std::io::Result<Vec<OwnedFd>> {
    let count = upgrade::passed();
    child::close_descriptors_from(child::FIRST_OTHER + count, 0)?;
    let passed = upgrade::take(count);
    rustix::process::umask(Mode::from_raw_mode(0o077));
    rustix::thread::set_no_new_privs(true)?;
    Ok(passed)
}

fn log() {
    let filter = EnvFilter::try_from_env("CASEMATE_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        // Otherwise a closed standard error would cause a message on standard error, or a panic.
        .log_internal_errors(false)
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    if std::env::var("CASEMATE_LOG_FORMAT").is_ok_and(|format| format == "json") {
        builder.json().init();
    } else {
        builder.init();
    }
}
