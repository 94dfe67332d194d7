//! Commands of the operator.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{Lifetime, NewKey};

/// `casemate fleet`
#[derive(Debug, Subcommand)]
pub enum Fleet {
    /// Make the root key, sign the control plane's keys, make the first pool
    Init(FleetInit),
    /// Sign the control plane's keys anew: before they expire, or when it was set up again
    Online(FleetOnline),
}

/// `casemate fleet init`
#[derive(Debug, Args)]
pub struct FleetInit {
    /// Where the control plane's API is, such as https://control.example:8443
    #[arg(long, value_name = "URL")]
    pub url: String,
    /// The public keys that `casemate-control init` wrote
    #[arg(long, value_name = "FILE")]
    pub control_keys: PathBuf,
    /// The first operator's token that `casemate-control init` wrote
    #[arg(long, value_name = "FILE")]
    pub token_file: PathBuf,
    /// How the root key is kept
    #[command(flatten)]
    pub new_key: NewKey,
    /// How long root, control plane's keys and first pool hold
    #[command(flatten)]
    pub lifetime: Lifetime,
}

/// `casemate fleet online`
#[derive(Debug, Args)]
pub struct FleetOnline {
    /// The public keys that `casemate-control init` wrote
    #[arg(long, value_name = "FILE")]
    pub control_keys: PathBuf,
    /// How long they hold
    #[command(flatten)]
    pub lifetime: Lifetime,
}

/// `casemate tenant`
#[derive(Debug, Subcommand)]
pub enum Tenant {
    /// Tenant: make the key that signs what you deploy, and print what the operator needs
    Key(TenantKey),
    /// Operator: admit a tenant by the public key that it gave you
    Add(TenantAdd),
    /// Who has been admitted
    List,
    /// One tenant: keys, hosts, limits, what it runs
    Show {
        /// The tenant's name
        name: String,
    },
}

/// `casemate tenant key`
#[derive(Debug, Args)]
pub struct TenantKey {
    /// How the key is kept
    #[command(flatten)]
    pub new_key: NewKey,
}

/// `casemate tenant add`
#[derive(Debug, Args)]
pub struct TenantAdd {
    /// Name of the tenant
    pub name: String,
    /// A public key that `casemate tenant key` printed, got from the tenant itself; once for each key
    #[arg(long = "key", value_name = "PUBLIC_KEY", required = true)]
    pub keys: Vec<String>,
    /// How many of the keys must sign
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub threshold: u32,
    /// A host name that its functions may answer to, or *.example.com; once for each
    #[arg(long = "host", value_name = "HOST", required = true)]
    pub hosts: Vec<String>,
    /// The most that its functions may ask for
    #[command(flatten)]
    pub ceilings: Ceilings,
    /// How long the statement holds
    #[command(flatten)]
    pub lifetime: Lifetime,
    /// Write the tenant's API token to FILE instead of showing it
    #[arg(long, value_name = "FILE")]
    pub token_out: Option<PathBuf>,
}

/// The most that a tenant's functions may ask for.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "The most that its functions may ask for")]
pub struct Ceilings {
    /// Functions
    #[arg(long, value_name = "N")]
    pub max_functions: Option<u32>,
    /// CPU time of a request, milliseconds
    #[arg(long, value_name = "MS")]
    pub max_cpu_time_ms: Option<u32>,
    /// Wall-clock time of a request, milliseconds
    #[arg(long, value_name = "MS")]
    pub max_wall_time_ms: Option<u32>,
    /// JavaScript heap, MiB
    #[arg(long, value_name = "MIB")]
    pub max_heap_mib: Option<u32>,
    /// Outgoing calls of a request
    #[arg(long, value_name = "N")]
    pub max_subrequests: Option<u32>,
    /// Requests in one worker at a time
    #[arg(long, value_name = "N")]
    pub max_concurrency: Option<u32>,
}

/// `casemate pool`
#[derive(Debug, Subcommand)]
pub enum Pool {
    /// Make a pool: its private key stays here and in the vaults of its nodes
    Add(PoolAdd),
    /// All pools
    List,
    /// A new key for a pool: nodes that stay get it, secrets are sealed to it from now on
    Rotate(PoolRotate),
    /// The same key, signed for longer
    Renew(PoolRenew),
}

/// `casemate pool add`
#[derive(Debug, Args)]
pub struct PoolAdd {
    /// Name of the pool
    pub name: String,
    /// How the key is kept
    #[command(flatten)]
    pub new_key: NewKey,
    /// How long the statement holds
    #[command(flatten)]
    pub lifetime: Lifetime,
}

/// `casemate pool rotate`
#[derive(Debug, Args)]
pub struct PoolRotate {
    /// Name of the pool
    pub name: String,
    /// How the key is kept
    #[command(flatten)]
    pub new_key: NewKey,
    /// How long the statement holds
    #[command(flatten)]
    pub lifetime: Lifetime,
}

/// `casemate pool renew`
#[derive(Debug, Args)]
pub struct PoolRenew {
    /// Name of the pool
    pub name: String,
    /// How long the statement holds
    #[command(flatten)]
    pub lifetime: Lifetime,
}

/// `casemate node`
#[derive(Debug, Subcommand)]
pub enum Node {
    /// Print a token with which one node may ask to join
    Token(NodeToken),
    /// Check those who ask, and seal the pool's key to them
    Admit(NodeAdmit),
    /// All nodes
    List,
    /// One node: layers in force, what it acknowledged and what it refused
    Show {
        /// The node's name
        name: String,
    },
    /// Throw a node out: its connection closes, it gets no new pool key
    Revoke {
        /// The node's name
        name: String,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
}

/// `casemate node token`
#[derive(Debug, Args)]
pub struct NodeToken {
    /// Name of the node
    pub name: String,
    /// Pool that it joins
    #[arg(long, value_name = "POOL", default_value = "default")]
    pub pool: String,
    /// Hours until the token is worth nothing
    #[arg(long, value_name = "HOURS", default_value_t = 24, value_parser = clap::value_parser!(u32).range(1..=720))]
    pub expires_hours: u32,
    /// Where the control plane's QUIC socket is [default: what the control plane says]
    #[arg(long, value_name = "HOST:PORT")]
    pub control_address: Option<String>,
    /// Write the token to FILE (mode 0600) instead of standard output
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// `casemate node admit`
#[derive(Debug, Args)]
pub struct NodeAdmit {
    /// Only the node of this name
    pub name: Option<String>,
    /// Go on admitting until stopped
    #[arg(long)]
    pub watch: bool,
}

/// `casemate token`
#[derive(Debug, Subcommand)]
pub enum Token {
    /// Make a token and show it once
    Create(TokenCreate),
    /// All tokens, without their secret part
    List,
    /// Take a token away
    Revoke {
        /// Its id, from `casemate token list`
        id: String,
    },
}

/// `casemate token create`
#[derive(Debug, Args)]
pub struct TokenCreate {
    /// What it is for, in words
    pub label: String,
    /// What it may do
    #[arg(long, value_enum)]
    pub scope: Scope,
    /// Whose it is, for scope tenant
    #[arg(long, value_name = "NAME", required_if_eq("scope", "tenant"))]
    pub tenant: Option<String>,
    /// Days until it is worth nothing [default: never]
    #[arg(long, value_name = "DAYS")]
    pub expires_days: Option<u32>,
    /// Write it to FILE (mode 0600) instead of standard output
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// What a token may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Scope {
    /// Everything
    Operator,
    /// One tenant's manifests, secrets and logs
    Tenant,
    /// Look, but change nothing
    ReadOnly,
}

/// `casemate audit`
#[derive(Debug, Args)]
pub struct Audit {
    /// Compute the chain of hashes anew and compare
    #[arg(long)]
    pub verify: bool,
    /// How many of the newest records
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub last: usize,
}
