//! The command line's commands and options.

mod freshness;
mod operator;
mod tenant;

use std::path::PathBuf;

use casemate_trust::name::Name;
use clap::{Args, CommandFactory as _, Parser, Subcommand};

pub use freshness::{Freshness, FreshnessKey, FreshnessOff, FreshnessRenew, FreshnessRequire};
pub use operator::{
    Audit, Ceilings, EgressLimits, Fleet, FleetInit, FleetOnline, FleetPublish, Image, ImageBuild,
    ImageFormat, ImagePush, Node, NodeAdmit, NodeRevoke, NodeShow, NodeToken, Pool, PoolAdd,
    PoolRotate, Tenant, TenantAdd, TenantHosts, TenantKey, TenantRekey, TenantRemove, TenantUpdate,
    Token, TokenCreate, TokenRevoke, TokenScope,
};
pub use tenant::{
    Deploy, Doctor, Init, Login, Logs, Moment, Prune, Reflection, Remove, Renew, Rollback, Secret,
    SecretPut, SecretRemove, Signing, SlotKind, Template, Versions, Whose,
};

/// Whom a command is for, in the order of the help text. A test checks that every command is in
/// exactly one group.
const GROUPS: &[(&str, &[&str])] = &[
    (
        "Your function (tenant)",
        &[
            "init",
            "deploy",
            "secret",
            "status",
            "versions",
            "logs",
            "rollback",
            "renew",
            "freshness",
            "prune",
            "remove",
        ],
    ),
    (
        "The fleet (operator)",
        &["fleet", "pool", "tenant", "node", "image", "token", "audit"],
    ),
    (
        "Both",
        &[
            "login",
            "whoami",
            "doctor",
            "expiry",
            "fingerprint",
            "completions",
        ],
    ),
];

/// Everything on the command line.
#[derive(Debug, Parser)]
#[command(
    name = "casemate",
    version,
    about = "Edge functions that use credentials without ever seeing them",
    arg_required_else_help = true,
    max_term_width = 100
)]
pub struct Cli {
    /// What every command takes.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What every command takes.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "For every command")]
pub struct Global {
    /// Keys, connection and memory of one fleet [default: casemate in the XDG config folder]
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "CASEMATE_HOME",
        hide_env_values = true
    )]
    pub home: Option<PathBuf>,
    /// An environment of casemate.toml: [env.NAME]
    #[arg(long, global = true, value_name = "NAME")]
    pub env: Option<Name>,
    /// Results as JSON on standard output, errors as JSON on standard error
    #[arg(long, global = true)]
    pub json: bool,
    /// Nothing but results, warnings and errors
    #[arg(long, short, global = true)]
    pub quiet: bool,
    /// Read the passphrase of key files from the first line of FILE instead of asking
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "CASEMATE_PASSPHRASE_FILE",
        hide_env_values = true
    )]
    pub passphrase_file: Option<PathBuf>,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a project: casemate.toml and a function
    Init(Init),
    /// Bundle, sign, upload, and wait until the nodes run it
    Deploy(Deploy),
    /// Seal secrets so that only the nodes' vaults can open them
    #[command(subcommand)]
    Secret(Secret),
    /// What is signed, what the nodes run, and what expires when
    Status(Whose),
    /// The releases of each function: when, by whom, what for, and which nodes run them
    Versions(Versions),
    /// Show the functions' logs
    Logs(Logs),
    /// Go back to an earlier release
    Rollback(Rollback),
    /// Sign the manifest again before it expires; needs no secret
    Renew(Renew),
    /// Stop credentials unless a key holder confirms in time that no newer manifest exists
    #[command(subcommand)]
    Freshness(Freshness),
    /// Forget earlier releases of a function, so that their bundles take no storage
    Prune(Prune),
    /// Withdraw a function from all nodes
    Remove(Remove),
    /// Create the fleet: its root key is made here and never leaves this machine
    #[command(subcommand)]
    Fleet(Fleet),
    /// The keys that secrets are sealed to
    #[command(subcommand)]
    Pool(Pool),
    /// Admit tenants; make a tenant's key
    #[command(subcommand)]
    Tenant(Tenant),
    /// Let nodes join, look at them, revoke them
    #[command(subcommand)]
    Node(Node),
    /// Bootable images for nodes
    #[command(subcommand)]
    Image(Image),
    /// Tokens for the API
    #[command(subcommand)]
    Token(Token),
    /// Who changed what, as a chain of hashes
    Audit(Audit),
    /// Everything that expires, the earliest first
    Expiry,
    /// Connect this home to a control plane that you know by its fingerprint
    Login(Login),
    /// Who this home is: fleet, control plane, tenant and keys
    Whoami(Whose),
    /// Look for what would keep commands from working, with a next step for each
    Doctor(Doctor),
    /// The fleet's fingerprint and the address to hand to tenants
    Fingerprint,
    /// Completions for a shell, on standard output: names of functions, secrets, nodes and environments too
    ///
    /// bash: source <(casemate completions bash); zsh: source <(casemate completions zsh); fish: casemate completions fish | source.
    /// Put the line into the shell's startup file, so that the script is of the same version as the program.
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

/// How a new key file is protected.
#[derive(Debug, Clone, Args)]
pub struct NewKey {
    /// Leave the key file unencrypted (mode 0600): for machines and tests
    #[arg(long)]
    pub plain_keys: bool,
}

/// How long a statement holds.
#[derive(Debug, Clone, Args)]
pub struct Lifetime {
    /// Days until it must be renewed
    #[arg(long, value_name = "DAYS", default_value_t = 400, value_parser = clap::value_parser!(u32).range(1..=3660))]
    pub expires_days: u32,
}

/// Where casemate.toml is.
#[derive(Debug, Clone, Args)]
pub struct ProjectFolder {
    /// The folder with casemate.toml
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub project: PathBuf,
}

/// A span of time such as 90s, 30m, 1h or 2d.
///
/// # Errors
/// The text is not a span of time.
pub fn seconds(text: &str) -> Result<u64, String> {
    let wrong = || format!("expected a time such as 90s, 30m, 1h or 2d, got {text:?}");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "s" | "" => 1,
        "m" => 60,
        "h" => 60 * 60,
        "d" => 24 * 60 * 60,
        _ => return Err(wrong()),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number
        .checked_mul(unit)
        .filter(|time| *time > 0)
        .ok_or_else(wrong)
}

/// A span of time as [`seconds`] reads it.
pub fn span(secs: u64) -> String {
    let units = [("d", 24 * 60 * 60), ("h", 60 * 60), ("m", 60)];
    let whole = units
        .into_iter()
        .find(|(_, unit)| secs >= *unit && secs.is_multiple_of(*unit));
    whole.map_or_else(
        || format!("{secs}s"),
        |(name, unit)| format!("{}{name}", secs / unit),
    )
}

/// The parser, with the commands grouped by whom they are for.
pub fn command() -> clap::Command {
    let command = Cli::command();
    let width = command
        .get_subcommands()
        .map(|sub| sub.get_name().len())
        .max()
        .unwrap_or_default();
    let mut groups = String::new();
    for (title, names) in GROUPS {
        groups += &format!("\n{title}:\n");
        for sub in names
            .iter()
            .filter_map(|name| command.find_subcommand(name))
        {
            let about = sub.get_about().map(ToString::to_string).unwrap_or_default();
            groups += &format!("  {:width$}  {about}\n", sub.get_name());
        }
    }
    command.help_template(format!(
        "{{about}}\n\n{{usage-heading}} {{usage}}\n{groups}\n{{options}}\n\n\
         `casemate COMMAND --help` says more. Start with `casemate init` or `casemate fleet init`."
    ))
}

#[cfg(test)]
mod tests;
