//! `casemate-vault`: judges statements and makes the outgoing calls of functions. Started by `casemate-launch` for the
//! supervisor, whose control socket is descriptor 0.
#![forbid(unsafe_code)]

mod calls;
mod clock;
mod config;
mod control;
mod error;
mod identity;
mod plan;
mod signer;
mod text;
mod vault;
mod walls;

use std::alloc::System;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;

use casemate_channel::Control;
use casemate_config::{EXIT_IO, EXIT_SOFTWARE, EXIT_UNAVAILABLE, EXIT_USAGE};
use casemate_wire::control::vault::{FromVault, ToVault};
use clap::Parser;
use zeroizing_alloc::ZeroAlloc;

use crate::config::Config;
use crate::vault::Vault;

/// Wipes memory when it is freed. TLS, HTTP and formatting copy secrets and free their copies
/// unwiped, so wiping our own types alone would not suffice. Buffers of open connections keep their
/// contents until they are freed.
#[global_allocator]
static ALLOCATOR: ZeroAlloc<System> = ZeroAlloc(System);

/// Judges statements and makes the outgoing calls of functions.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// vault.toml
    #[arg(long)]
    config: PathBuf,
    /// Folder of its own, 0700.
    #[arg(long)]
    state: PathBuf,
}

fn main() -> ExitCode {
    casemate_config::start_logs();
    let arguments = Arguments::parse();
    let control = match std::io::stdin().as_fd().try_clone_to_owned() {
        Ok(control) => control,
        Err(error) => {
            return fail(
                EXIT_USAGE,
                None,
                format!("descriptor 0 must be the supervisor's socket: {error}"),
            );
        }
    };
    let config = match Config::read(&arguments.config, &arguments.state) {
        Ok(config) => config,
        Err(mistakes) => return fail(EXIT_USAGE, Some(control), mistakes.to_string()),
    };
    // The sandbox closes before anything from the network or the disk is read: Landlock applies to
    // threads that start later.
    let closed = match walls::close_in(&config) {
        Ok(closed) => closed,
        Err(message) => return fail(EXIT_UNAVAILABLE, Some(control), message),
    };
    let vault = match Vault::open(&config) {
        Ok(vault) => vault,
        Err(error) => return fail(error.exit_code(), Some(control), error.to_string()),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("vault")
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            return fail(
                EXIT_SOFTWARE,
                Some(control),
                format!("cannot start threads: {error}"),
            );
        }
    };
    runtime.block_on(async {
        match control::serve(control, vault, &config, closed).await {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                tracing::error!(error = %error, cause = ?std::error::Error::source(&error), "the vault ended with an error");
                ExitCode::from(error.exit_code())
            }
        }
    })
}

/// Reports the reason to the log and, if there is one, to the supervisor.
fn fail(code: u8, control: Option<OwnedFd>, message: String) -> ExitCode {
    tracing::error!("{message}");
    let tell = || -> Option<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .ok()?;
        runtime.block_on(async {
            let control: Control<FromVault, ToVault> = Control::new(control?).ok()?;
            let message = text::cut(message);
            control.send(&FromVault::Failed { message }, &[]).await.ok()
        })
    };
    // Without a supervisor, the log has the message.
    let _told = tell();
    ExitCode::from(if code == 0 { EXIT_IO } else { code })
}
