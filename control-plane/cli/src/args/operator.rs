//! Commands of the operator.

use std::path::PathBuf;

use casemate_images::Profile;
use casemate_trust::host::HostPattern;
use casemate_trust::image::ImageVersion;
use casemate_trust::key::PublicKey;
use casemate_trust::name::Name;
use casemate_trust::statement::MIN_MEMORY_MIB;
use clap::builder::PossibleValuesParser;
use clap::{Args, Subcommand, ValueEnum};
use ipnet::IpNet;

use super::{Lifetime, NewKey, seconds};

/// `casemate fleet`
#[derive(Debug, Subcommand)]
pub enum Fleet {
    /// Make the root key, sign the control plane's keys, make the first pool
    Init(FleetInit),
    /// Sign the control plane's keys again: before they expire, or after it was set up again
    Online(FleetOnline),
    /// Hand everything that the root has signed to the control plane
    Publish(FleetPublish),
    /// Replace the root's key: the root signs its successor, which signs everything again
    RotateRoot,
}

/// `casemate fleet init`
#[derive(Debug, Args)]
pub struct FleetInit {
    /// The public keys that `casemate-control init` wrote (public.json)
    #[arg(long, value_name = "FILE")]
    pub control_public: PathBuf,
    /// Name of the first pool
    #[arg(long, value_name = "NAME", default_value = crate::project::DEFAULT_POOL)]
    pub pool: Name,
    /// How the keys are kept
    #[command(flatten)]
    pub new_key: NewKey,
    /// How long root, control plane's keys and first pool hold
    #[command(flatten)]
    pub lifetime: Lifetime,
}

/// `casemate fleet online`
#[derive(Debug, Args)]
pub struct FleetOnline {
    /// The public keys that `casemate-control init` wrote (public.json)
    #[arg(long, value_name = "FILE")]
    pub control_public: PathBuf,
    /// How long they hold
    #[command(flatten)]
    pub lifetime: Lifetime,
}

/// `casemate fleet publish`
#[derive(Debug, Args)]
pub struct FleetPublish {
    /// After a restore: admit again the nodes that this home has admitted and the control plane has lost
    #[arg(long)]
    pub readmit: bool,
}

/// `casemate tenant`
#[derive(Debug, Subcommand)]
pub enum Tenant {
    /// Tenant: make the key that signs what you deploy, or show it; print what the operator needs
    Key(TenantKey),
    /// Operator: admit a tenant by the public key that it gave you
    Add(TenantAdd),
    /// List the admitted tenants
    List,
    /// Show one tenant: keys, hosts, limits
    Show {
        /// The tenant's name
        name: Name,
    },
    /// Operator: change the hosts that a tenant's functions may answer for, or renew its statement
    Hosts(TenantHosts),
    /// Operator: change what a tenant's functions may use and where they may call
    Update(TenantUpdate),
    /// Replace a tenant's keys: the tenant by its earlier ones, the operator by the root
    Rekey(TenantRekey),
    /// Operator: remove a tenant: no host leads to its functions any more, and no key signs for it
    Remove(TenantRemove),
}

/// `casemate tenant rekey`
#[derive(Debug, Args)]
pub struct TenantRekey {
    /// Name of the tenant [default: the tenant that this home signs for]
    pub name: Option<Name>,
    /// A key that signs from now on, instead of all earlier ones; once for each [default: a new one in this home for its own]
    #[arg(long = "key", value_name = "PUBLIC_KEY")]
    pub keys: Vec<PublicKey>,
    /// How many of the keys must sign [default: as many as before]
    #[arg(long, value_name = "N")]
    pub threshold: Option<u32>,
    /// One more of the tenant's earlier key files that signs, where several must; once for each
    #[arg(long = "with-key", value_name = "FILE")]
    pub with_keys: Vec<PathBuf>,
}

/// `casemate tenant remove`
#[derive(Debug, Args)]
pub struct TenantRemove {
    /// Name of the tenant
    pub name: Name,
    /// Do not ask
    #[arg(long, short)]
    pub yes: bool,
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
    pub name: Name,
    /// A public key that `casemate tenant key` printed, or its fingerprint to compare with; once for each
    #[arg(long = "key", value_name = "PUBLIC_KEY|FINGERPRINT", required = true)]
    pub keys: Vec<String>,
    /// How many of the keys must sign
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub threshold: u32,
    /// A host name that its functions may answer for, or *.example.com; once for each
    #[arg(long = "host", value_name = "HOST", required = true)]
    pub hosts: Vec<HostPattern>,
    /// How long the statement holds
    #[command(flatten)]
    pub lifetime: Lifetime,
    /// Sign this in place of what an earlier try has signed under the same name
    #[arg(long)]
    pub replace: bool,
    /// Write the tenant's API token to FILE (mode 0600) instead of showing it
    #[arg(long, value_name = "FILE")]
    pub token_out: Option<PathBuf>,
    /// The most that its functions may ask for; last, because help puts what follows below the same heading
    #[command(flatten)]
    pub ceilings: Ceilings,
    /// Where its functions may call at most
    #[command(flatten)]
    pub egress: EgressLimits,
}

/// `casemate tenant update`
#[derive(Debug, Args)]
pub struct TenantUpdate {
    /// Name of the tenant
    pub name: Name,
    /// How long the new statement holds
    #[command(flatten)]
    pub lifetime: Lifetime,
    /// The most that its functions may ask for; what is not named stays
    #[command(flatten)]
    pub ceilings: Ceilings,
    /// Where its functions may call at most; each list that is named replaces the earlier one
    #[command(flatten)]
    pub egress: EgressLimits,
    /// Remove the egress ceiling: the node's `private_addresses` hold again
    #[arg(long, conflicts_with_all = ["egress_hosts", "egress_ports", "private_networks"])]
    pub no_egress_ceiling: bool,
}

/// Where a tenant's functions may call at most.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Where its functions may call at most")]
pub struct EgressLimits {
    /// A host that its functions may call, or *.example.com for the names one label below [default: all]; once for each
    #[arg(long = "egress-host", value_name = "HOST")]
    pub egress_hosts: Vec<HostPattern>,
    /// A port that its functions may call [default: all]; once for each
    #[arg(long = "egress-port", value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub egress_ports: Vec<u16>,
    /// A network that its functions may call although it is not the public internet, such as 10.1.0.0/16; with any of
    /// these options the node's `private_addresses` no longer hold for this tenant; once for each
    #[arg(long = "private-network", value_name = "NETWORK", value_parser = network)]
    pub private_networks: Vec<IpNet>,
}

fn network(text: &str) -> Result<IpNet, String> {
    let flaw = || format!("expected a network such as 10.1.0.0/16, got {text:?}");
    text.parse().map_err(|_| flaw())
}

/// `casemate tenant hosts`
#[derive(Debug, Args)]
pub struct TenantHosts {
    /// Name of the tenant
    pub name: Name,
    /// A host to add; once for each
    #[arg(long = "add", value_name = "HOST")]
    pub add: Vec<HostPattern>,
    /// A host to take away; once for each
    #[arg(long = "remove", value_name = "HOST")]
    pub remove: Vec<HostPattern>,
    /// How long the new statement holds
    #[command(flatten)]
    pub lifetime: Lifetime,
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
    /// Lifetime of an outgoing call, milliseconds
    #[arg(long, value_name = "MS")]
    pub max_call_time_ms: Option<u32>,
    /// Memory of all its workers on a node together, MiB; a new tenant has 4096
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u32).range(i64::from(MIN_MEMORY_MIB)..))]
    pub max_memory_mib: Option<u32>,
}

/// `casemate pool`
#[derive(Debug, Subcommand)]
pub enum Pool {
    /// All pools
    List,
    /// Make a pool: its private key stays here and in the vaults of its nodes
    Add(PoolAdd),
    /// A new key for a pool: nodes that stay get it, secrets are sealed to it from now on
    Rotate(PoolRotate),
}

/// `casemate pool add`
#[derive(Debug, Args)]
pub struct PoolAdd {
    /// Name of the pool
    pub name: Name,
    /// How long the statement holds
    #[command(flatten)]
    pub lifetime: Lifetime,
}

/// `casemate pool rotate`
#[derive(Debug, Args)]
pub struct PoolRotate {
    /// Name of the pool
    pub name: Name,
    /// How long the statement holds
    #[command(flatten)]
    pub lifetime: Lifetime,
}

/// `casemate node`
#[derive(Debug, Subcommand)]
pub enum Node {
    /// Print a token with which one node may ask to join, or cancel those that were printed
    Token(NodeToken),
    /// Check those who ask, and seal the pool's key to them
    Admit(NodeAdmit),
    /// All nodes
    List,
    /// One node: how it is, what it acknowledged and what it refused
    Show(NodeShow),
    /// Revoke a node: close its connection and give it no new pool key
    Revoke(NodeRevoke),
}

/// `casemate node token`
#[derive(Debug, Args)]
pub struct NodeToken {
    /// Name of the node
    pub name: Name,
    /// Pool that it joins
    #[arg(long, value_name = "POOL", default_value = crate::project::DEFAULT_POOL)]
    pub pool: Name,
    /// Where the control plane's QUIC socket is [default: what the control plane says]
    #[arg(long, value_name = "HOST:PORT")]
    pub control: Option<String>,
    /// How long the token can be used: 90s, 30m, 1h, 2d
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = seconds)]
    pub valid: u64,
    /// Write the token to FILE (mode 0600) instead of standard output
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Make no token; revoke the unused tokens of this node
    #[arg(long, conflicts_with_all = ["pool", "control", "valid", "out"])]
    pub cancel: bool,
}

/// `casemate node admit`
#[derive(Debug, Args)]
pub struct NodeAdmit {
    /// Only the node of this name; it is waited for
    pub name: Option<Name>,
    /// Go on admitting until stopped
    #[arg(long)]
    pub watch: bool,
    /// Seconds to wait for the named node to ask
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 30,
        conflicts_with = "watch"
    )]
    pub wait: u64,
}

/// `casemate node show`
#[derive(Debug, Args)]
pub struct NodeShow {
    /// The node's name
    pub name: Name,
    /// Everything that the node says of itself, and every manifest and refusal
    #[arg(long)]
    pub all: bool,
}

/// `casemate node revoke`
#[derive(Debug, Args)]
pub struct NodeRevoke {
    /// The node's name
    pub name: Name,
    /// Do not ask
    #[arg(long, short)]
    pub yes: bool,
}

/// `casemate token`
#[derive(Debug, Subcommand)]
pub enum Token {
    /// Make a token and show it once
    Create(TokenCreate),
    /// All tokens, without their secret part
    List,
    /// Take a token away
    Revoke(TokenRevoke),
}

/// `casemate token revoke`
#[derive(Debug, Args)]
pub struct TokenRevoke {
    /// Its id, from `casemate token list`
    pub id: String,
    /// Do not ask
    #[arg(long, short)]
    pub yes: bool,
}

/// `casemate token create`
#[derive(Debug, Args)]
pub struct TokenCreate {
    /// What it may do
    #[arg(long, value_enum)]
    pub scope: TokenScope,
    /// The tenant, for scope tenant
    #[arg(long, value_name = "NAME", required_if_eq("scope", "tenant"))]
    pub tenant: Option<Name>,
    /// What it is for, in words
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "made by casemate token create"
    )]
    pub label: String,
    /// How long it can be used, such as 90d [default: until it is revoked]
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    pub valid: Option<u64>,
    /// Write it to FILE (mode 0600) instead of standard output
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// What a token may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum TokenScope {
    /// Everything but acting as a tenant
    Operator,
    /// One tenant's manifests, secrets and logs
    Tenant,
    /// Look, but change nothing
    ReadOnly,
}

/// `casemate audit`
#[derive(Debug, Args)]
pub struct Audit {
    /// Compute the chain of hashes again; it must contain what was verified here before
    #[arg(long)]
    pub verify: bool,
    /// How many of the newest records
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub last: usize,
}

/// `casemate image`
#[derive(Debug, Subcommand)]
pub enum Image {
    /// Build an image from the node's programs and Debian packages, which are downloaded but not installed
    Build(ImageBuild),
    /// Sign an image for the machines of the given pools, and upload it
    Push(ImagePush),
    /// List the newest image of each pool
    List,
}

/// `casemate image push`
#[derive(Debug, Args)]
pub struct ImagePush {
    /// The image: a .efi file that `casemate image build` made. The version is read from the file
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// A pool whose machines are to run it; once for each
    #[arg(long = "pool", value_name = "NAME", required = true)]
    pub pools: Vec<Name>,
    /// Allow an image without a Secure Boot signature: for machines without Secure Boot and without a TPM
    #[arg(long)]
    pub unsigned: bool,
    /// How long machines that do not run it yet accept it
    #[command(flatten)]
    pub lifetime: Lifetime,
}

/// `casemate image build`
#[derive(Debug, Args)]
pub struct ImageBuild {
    /// The kind of machine
    #[arg(long, value_name = "NAME", default_value = "virtual-machine", value_parser = PossibleValuesParser::new(Profile::names()))]
    pub profile: String,
    /// The folder with the node's programs [default: the folder of casemate]
    #[arg(long, value_name = "DIR")]
    pub programs: Option<PathBuf>,
    /// The folder for what is made
    #[arg(long, value_name = "DIR", default_value = "image")]
    pub out: PathBuf,
    /// Build from exactly the packages and programs that this plan.json names
    #[arg(long, value_name = "FILE")]
    pub plan: Option<PathBuf>,
    /// Version of the image, higher than that of the one before [default: that of casemate]
    #[arg(long, value_name = "X.Y.Z", conflicts_with = "plan")]
    pub image_version: Option<ImageVersion>,
    /// What to make; once for each [default: uki]
    #[arg(long = "format", value_enum, value_name = "FORMAT")]
    pub formats: Vec<ImageFormat>,
    /// Sign for UEFI Secure Boot with this RSA key (PEM), which the machines' firmware knows
    #[arg(long, value_name = "FILE", requires = "secure_boot_certificate")]
    pub secure_boot_key: Option<PathBuf>,
    /// The key's certificate (PEM)
    #[arg(long, value_name = "FILE", requires = "secure_boot_key")]
    pub secure_boot_certificate: Option<PathBuf>,
    /// Size of the state partition of a disk image, MiB; it can be made larger later
    #[arg(long, value_name = "MIB", default_value_t = 2048, value_parser = clap::value_parser!(u32).range(64..=1024 * 1024))]
    pub state_mib: u32,
    /// Compress in a second instead of a minute, a quarter larger
    #[arg(long)]
    pub fast: bool,
}

/// What an image is written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ImageFormat {
    /// One file that UEFI firmware starts, from a disk or over HTTP
    Uki,
    /// Kernel, initramfs and command line apart, for PXE or `qemu -kernel`
    Direct,
    /// A disk with boot and state partitions, to write to a device
    Raw,
    /// The same disk for QEMU
    Qcow2,
}
