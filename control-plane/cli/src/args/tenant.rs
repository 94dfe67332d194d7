//! Commands of the tenant.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::{Lifetime, ProjectFolder};

/// `casemate init`
#[derive(Debug, Args)]
pub struct Init {
    /// Folder to make; its name becomes the function's
    #[arg(default_value = ".")]
    pub dir: PathBuf,
    /// What to begin with
    #[arg(long, value_enum, default_value_t = Template::Hello)]
    pub template: Template,
    /// Host name that the function answers to
    #[arg(long, value_name = "HOST")]
    pub host: Option<String>,
}

/// What `casemate init` begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Template {
    /// Answers a greeting
    Hello,
    /// Calls an API with a credential that it never sees
    Proxy,
    /// Several routes in several files
    Router,
}

/// `casemate login`
#[derive(Debug, Args)]
pub struct Login {
    /// https://HOST:PORT#FINGERPRINT, got from the operator and not from the network
    pub address: String,
    /// Read the API token from FILE instead of asking (- for standard input)
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
}

/// `casemate deploy`
#[derive(Debug, Args)]
pub struct Deploy {
    /// Where casemate.toml is
    #[command(flatten)]
    pub project: ProjectFolder,
    /// How long the manifest holds
    #[command(flatten)]
    pub lifetime: Lifetime,
    /// Return as soon as the control plane has it
    #[arg(long)]
    pub no_wait: bool,
    /// Seconds to wait for the nodes
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub timeout_secs: u32,
    /// Bundle and check everything, but sign and upload nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// `casemate secret`
#[derive(Debug, Subcommand)]
pub enum Secret {
    /// Seal a value: from standard input, a file or a prompt, never from the command line
    Put(SecretPut),
    /// Names, versions and where they may go; values cannot be read back
    List,
    /// Withdraw a secret from all nodes
    Rm {
        /// Name of the secret
        name: String,
    },
}

/// `casemate secret put`
#[derive(Debug, Args)]
pub struct SecretPut {
    /// Name of the secret, such as STRIPE_KEY
    pub name: String,
    /// A host that it may be sent to; once for each
    #[arg(long = "host", value_name = "HOST", required = true)]
    pub hosts: Vec<String>,
    /// A method that it may be used with [default: all]; once for each
    #[arg(long = "method", value_name = "METHOD")]
    pub methods: Vec<String>,
    /// A path that it may be sent to, such as /v1/charges or /v1/* [default: all]; once for each
    #[arg(long = "path", value_name = "PATH")]
    pub paths: Vec<String>,
    /// A kind of place that it may be put in [default: all]; once for each
    #[arg(long = "slot", value_enum, value_name = "KIND")]
    pub slots: Vec<SlotKind>,
    /// Read the value from FILE instead of standard input; one newline at its end is dropped
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// The pool whose nodes may open it
    #[arg(long, value_name = "POOL", default_value = "default")]
    pub pool: String,
    /// How long the manifest holds
    #[command(flatten)]
    pub lifetime: Lifetime,
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

/// `casemate rollback`
#[derive(Debug, Args)]
pub struct Rollback {
    /// The function [default: the one of casemate.toml]
    pub function: Option<String>,
    /// The release, by the beginning of its digest [default: the one before]
    #[arg(long, value_name = "DIGEST")]
    pub to: Option<String>,
    /// Where casemate.toml is
    #[command(flatten)]
    pub project: ProjectFolder,
    /// How long the manifest holds
    #[command(flatten)]
    pub lifetime: Lifetime,
    /// Return as soon as the control plane has it
    #[arg(long)]
    pub no_wait: bool,
    /// Seconds to wait for the nodes
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub timeout_secs: u32,
}

/// `casemate renew`
#[derive(Debug, Args)]
pub struct Renew {
    /// How long the manifest holds
    #[command(flatten)]
    pub lifetime: Lifetime,
}

/// `casemate logs`
#[derive(Debug, Args)]
pub struct Logs {
    /// Go on until stopped
    #[arg(long, short)]
    pub follow: bool,
    /// Only this function
    #[arg(long, value_name = "NAME")]
    pub function: Option<String>,
    /// How many of the newest lines to begin with
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub last: usize,
}
