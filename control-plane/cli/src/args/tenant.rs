//! Commands of the tenant.

use std::path::PathBuf;

use casemate_api::log::{Level, StatusPattern};
use casemate_trust::host::HostName;
use casemate_trust::name::{Identifier, Name};
use casemate_trust::path::{Method, PathPattern};
use clap::{Args, Subcommand, ValueEnum};

use super::{Lifetime, ProjectFolder, seconds};
use crate::endpoint::Endpoint;

/// `casemate init`
#[derive(Debug, Args)]
pub struct Init {
    /// Name of the function; a folder of that name is made
    pub name: Name,
    /// The language to begin with
    #[arg(long, value_enum, default_value_t = Template::Ts)]
    pub template: Template,
    /// Host name that the function answers for [default: NAME.example.com]
    #[arg(long, value_name = "HOST")]
    pub host: Option<HostName>,
}

/// What `casemate init` begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Template {
    /// TypeScript
    Ts,
    /// JavaScript
    Js,
}

/// `casemate login`
#[derive(Debug, Args)]
pub struct Login {
    /// https://HOST:PORT#FINGERPRINT, got from the operator and not from the network [default: `control` of the environment]
    #[arg(required_unless_present = "env")]
    pub address: Option<String>,
    /// The API token; other users of this machine see it in the list of processes, so rather use a file
    #[arg(
        long,
        value_name = "TOKEN",
        env = "CASEMATE_TOKEN",
        hide_env_values = true
    )]
    pub token: Option<String>,
    /// Read the API token from FILE instead of asking (- for standard input)
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// This home holds the fleet's root key: publish what it has signed
    #[arg(long)]
    pub operator: bool,
}

/// Which tenant a command is about.
#[derive(Debug, Clone, Args)]
pub struct Whose {
    /// The tenant [default: the one that this home's key signs for]
    #[arg(long, value_name = "NAME")]
    pub tenant: Option<Name>,
}

/// How a new manifest is signed and followed.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Signing")]
pub struct Signing {
    /// How long the manifest holds
    #[command(flatten)]
    pub lifetime: Lifetime,
    /// One more of the tenant's key files that signs, where several must; once for each
    #[arg(long = "with-key", value_name = "FILE")]
    pub with_keys: Vec<PathBuf>,
    /// Seconds to wait until the nodes run it; 0 does not wait
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub wait: u64,
    /// The tenant
    #[command(flatten)]
    pub whose: Whose,
}

/// `casemate deploy`
#[derive(Debug, Args)]
pub struct Deploy {
    /// Bundle and check everything, but sign and upload nothing
    #[arg(long)]
    pub dry_run: bool,
    /// What the release is for, as `casemate versions` shows it [default: the last commit of git, and its author; with an
    /// empty TEXT nothing is noted]
    #[arg(long, value_name = "TEXT")]
    pub message: Option<String>,
    /// Where casemate.toml is
    #[command(flatten)]
    pub project: ProjectFolder,
    /// How the manifest is signed
    #[command(flatten)]
    pub signing: Signing,
}

/// `casemate secret`
#[derive(Debug, Subcommand)]
pub enum Secret {
    /// Seal a value: from standard input, a file or a prompt, never from the command line
    Put(Box<SecretPut>),
    /// Names, versions and where they may go; values cannot be read back
    List(Whose),
    /// Withdraw a secret from all nodes
    Rm(SecretRemove),
}

/// `casemate secret put`
#[derive(Debug, Args)]
pub struct SecretPut {
    /// Name of the secret, such as STRIPE_KEY
    #[arg(required_unless_present = "env_file")]
    pub name: Option<Identifier>,
    /// Seal every NAME=value of FILE, in the grammar of dotenv (- for standard input), in one manifest
    #[arg(long, value_name = "FILE", conflicts_with_all = ["name", "from_file"])]
    pub env_file: Option<PathBuf>,
    /// A host that it may be sent to, such as api.example.com, or with its port api.example.com:8443; once for each
    /// [default with `--env-file`: the hosts of the credentials in casemate.toml that use the secret]
    #[arg(
        long = "host",
        value_name = "HOST[:PORT]",
        required_unless_present = "env_file"
    )]
    pub hosts: Vec<Endpoint>,
    /// A port of the hosts, in place of one behind each host [default: 443]; once for each
    #[arg(long = "port", value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub ports: Vec<u16>,
    /// A method that it may be used with [default: all]; once for each
    #[arg(long = "method", value_name = "METHOD")]
    pub methods: Vec<Method>,
    /// A path that it may be sent to, such as /v1/charges or /v1/* [default: all]; once for each
    #[arg(long = "path", value_name = "PATH")]
    pub paths: Vec<PathPattern>,
    /// A kind of place that it may be put in [default: all]; once for each
    #[arg(long = "slot", value_enum, value_name = "KIND")]
    pub slots: Vec<SlotKind>,
    /// A header or query parameter that it may be put in, such as x-api-key; authorization for bearer and basic
    /// [default: all]; once for each
    #[arg(long = "slot-name", value_name = "NAME")]
    pub slot_names: Vec<String>,
    /// The PEM file that the slot names as `ca` in casemate.toml: it may go to servers of that authority only
    /// [default: servers that the node's own authorities vouch for]
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// What happens when a host sends it back
    #[arg(long, value_enum, value_name = "WHAT", default_value_t = Reflection::Refuse)]
    pub reflection: Reflection,
    /// Seal a value of fewer than 8 bytes, which a function can guess
    #[arg(long)]
    pub short: bool,
    /// Read the value from FILE instead of standard input; one line break at its end is dropped
    #[arg(long, value_name = "FILE")]
    pub from_file: Option<PathBuf>,
    /// A pool whose nodes may open it [default: those of your functions and of casemate.toml]; once for each
    #[arg(long = "pool", value_name = "POOL")]
    pub pools: Vec<Name>,
    /// Refused: a value on the command line can be read by everybody on this machine
    #[arg(long, value_name = "VALUE", hide = true)]
    pub value: Option<String>,
    /// Where casemate.toml is
    #[command(flatten)]
    pub project: ProjectFolder,
    /// How it is signed
    #[command(flatten)]
    pub signing: Signing,
}

/// `casemate secret rm`
#[derive(Debug, Args)]
pub struct SecretRemove {
    /// Name of the secret
    pub name: Identifier,
    /// Do not ask
    #[arg(long, short)]
    pub yes: bool,
    /// How it is signed
    #[command(flatten)]
    pub signing: Signing,
}

/// Where in a request a secret may be put.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SlotKind {
    /// A header of a name of your choice
    Header,
    /// `Authorization: Bearer`
    Bearer,
    /// `Authorization: Basic`, as the password
    Basic,
    /// A query parameter
    Query,
}

/// What happens when a host sends a secret back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Reflection {
    /// The secret is replaced, and the third time within an hour the credential stops
    Refuse,
    /// The secret is replaced, however often: for hosts that echo by design; a function can then
    /// guess the value by trial
    Scrub,
}

/// `casemate rollback`
#[derive(Debug, Args)]
pub struct Rollback {
    /// The function
    pub function: Name,
    /// The release, by the beginning of its digest [default: the one before]
    #[arg(long, value_name = "DIGEST")]
    pub to: Option<String>,
    /// How it is signed
    #[command(flatten)]
    pub signing: Signing,
}

/// `casemate versions`
#[derive(Debug, Args)]
pub struct Versions {
    /// Only this function
    pub function: Option<Name>,
    /// The tenant
    #[command(flatten)]
    pub whose: Whose,
}

/// `casemate doctor`
#[derive(Debug, Args)]
pub struct Doctor {
    /// Where casemate.toml is, if this is about a project
    #[command(flatten)]
    pub project: ProjectFolder,
    /// The tenant
    #[command(flatten)]
    pub whose: Whose,
}

/// `casemate renew`
#[derive(Debug, Args)]
pub struct Renew {
    /// Sign what this home remembers above whatever the nodes hold, also over a manifest that only they have seen
    #[arg(long)]
    pub from_memory: bool,
    /// How it is signed
    #[command(flatten)]
    pub signing: Signing,
}

/// `casemate prune`
#[derive(Debug, Args)]
pub struct Prune {
    /// The function
    pub function: Name,
    /// How many earlier releases to keep, the newest ones
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub keep: usize,
    /// How it is signed
    #[command(flatten)]
    pub signing: Signing,
}

/// `casemate remove`
#[derive(Debug, Args)]
pub struct Remove {
    /// The function
    pub function: Name,
    /// Do not ask
    #[arg(long, short)]
    pub yes: bool,
    /// How it is signed
    #[command(flatten)]
    pub signing: Signing,
}

/// `casemate logs`
#[derive(Debug, Args)]
pub struct Logs {
    /// Only this function
    pub function: Option<Name>,
    /// Go on until stopped
    #[arg(long, short)]
    pub follow: bool,
    /// How many of the newest lines to begin with [default: 100; with a search below: all]
    #[arg(long, value_name = "N")]
    pub last: Option<usize>,
    /// Only from this time on: how long ago, such as 2h, or a time such as 2026-11-30T15:00:00Z
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub since: Option<Moment>,
    /// Only before this time
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub until: Option<Moment>,
    /// Only this level and those above it: debug, info, warn, error
    #[arg(long, value_name = "LEVEL")]
    pub level: Option<Level>,
    /// Only requests that were answered with this status, or with one of a class, such as 5xx
    #[arg(long, value_name = "STATUS")]
    pub status: Option<StatusPattern>,
    /// Only what is about this request
    #[arg(long, value_name = "ID")]
    pub request: Option<String>,
    /// Only lines that hold this text
    #[arg(long, value_name = "TEXT")]
    pub grep: Option<String>,
    /// Only what happened on this node
    #[arg(long, value_name = "NODE")]
    pub node: Option<Name>,
    /// The tenant
    #[command(flatten)]
    pub whose: Whose,
}

/// A time, as it is typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// This many seconds ago.
    Ago(u64),
    /// Unix milliseconds.
    At(u64),
}

impl Moment {
    /// The time in Unix milliseconds, where the clock shows `now_ms`.
    pub fn at_ms(self, now_ms: u64) -> u64 {
        match self {
            Self::Ago(secs) => now_ms.saturating_sub(secs.saturating_mul(1000)),
            Self::At(ms) => ms,
        }
    }
}

fn moment(text: &str) -> Result<Moment, String> {
    if let Ok(secs) = seconds(text) {
        return Ok(Moment::Ago(secs));
    }
    let wrong = || {
        format!(
            "expected how long ago, such as 30m or 2d, or a time such as 2026-11-30T15:00:00Z, got {text:?}"
        )
    };
    let time: jiff::Timestamp = text.parse().map_err(|_| wrong())?;
    u64::try_from(time.as_millisecond())
        .map(Moment::At)
        .map_err(|_| wrong())
}
