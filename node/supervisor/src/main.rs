//! `casemate-node`: the supervisor of a node. Started by `casemate-launch`, whose command socket is descriptor 0.
#![forbid(unsafe_code)]

#[cfg(test)]
#[path = "../../../tests/fixtures/archive.rs"]
mod archive;
mod config;
mod format;
mod lock;
mod shell;
mod state;

use std::path::PathBuf;
use std::process::ExitCode;

use casemate_config::{EXIT_SOFTWARE, EXIT_UNAVAILABLE, EXIT_USAGE};
use casemate_sandbox::{LayerReport, Profile, SandboxError};
use clap::Parser;

use crate::config::Config;

/// The supervisor of a node.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// node.toml
    #[arg(long)]
    config: PathBuf,
    /// Folder of its own, 0700.
    #[arg(long)]
    state: PathBuf,
    /// Where init says what it does with the machine, on one that boots images; an absolute path.
    #[arg(long, value_name = "FILE")]
    machine: Option<PathBuf>,
    /// Listening sockets that launch holds and hands over first.
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    held: u32,
    /// Children of a supervisor that has crashed, which launch hands over then.
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    adopt: u32,
}

fn main() -> ExitCode {
    casemate_config::start_logs();
    let arguments = Arguments::parse();
    let fail = |code: u8, message: String| {
        tracing::error!("{message}");
        ExitCode::from(code)
    };
    let config = match Config::read(&arguments.config, &arguments.state, arguments.machine) {
        Ok(config) => config,
        Err(mistakes) => return fail(EXIT_USAGE, mistakes.to_string()),
    };
    let launch = match casemate_sandbox::launch::Client::from_stdin() {
        Ok(launch) => launch,
        Err(error) => {
            return fail(
                EXIT_USAGE,
                format!("descriptor 0 must be casemate-launch's socket: {error}"),
            );
        }
    };
    let _lock = match lock::lock(&config.state) {
        Ok(lock) => lock,
        Err((code, message)) => return fail(code, message),
    };
    if let Err((code, message)) = format::open(&config.state) {
        return fail(code, message);
    }
    let admin = match shell::admin::bind(&config.admin_socket) {
        Ok(admin) => admin,
        Err(error) => {
            return fail(
                EXIT_UNAVAILABLE,
                format!(
                    "the admin socket {}: {error}",
                    config.admin_socket.display()
                ),
            );
        }
    };
    let layers = match close_in(&config) {
        Ok(layers) => layers,
        Err(message) => return fail(EXIT_UNAVAILABLE, message),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("node")
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return fail(EXIT_SOFTWARE, format!("cannot start threads: {error}")),
    };
    let inheritance = shell::Inheritance {
        sockets: arguments.held,
        children: arguments.adopt,
    };
    runtime.block_on(async {
        match shell::run(config, launch, admin, layers, inheritance).await {
            Ok(code) => ExitCode::from(code),
            Err(error) => fail(EXIT_SOFTWARE, format!("the supervisor ends: {error}")),
        }
    })
}

fn close_in(config: &Config) -> Result<Vec<LayerReport>, String> {
    // The first look at a clock finds the vDSO by a call that the walls stop.
    let _now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let failed = |error: SandboxError| {
        let cause = std::error::Error::source(&error)
            .map(|cause| format!(": {cause}"))
            .unwrap_or_default();
        format!("cannot close the sandbox: {error}{cause}")
    };
    // Each worker's control channel has one.
    casemate_sandbox::raise_descriptors().map_err(failed)?;
    let layers =
        casemate_sandbox::close_with(Profile::Supervisor, &config.paths()).map_err(failed)?;
    config.must_be_in_force("the supervisor", &layers)?;
    Ok(layers)
}
