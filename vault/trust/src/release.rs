//! Releases: the code of a function, what it may reach, and which credential is sent where. Named
//! by the digest of their bytes.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::authority::CaPem;
use crate::host::HostName;
use crate::id::{Digest, FleetId, TenantId};
use crate::name::{Identifier, Name};
use crate::path::{Method, PathPattern};
use crate::statement::{Ceilings, EgressCeiling, Tenant};

pub use crate::authority::MAX_CA_BYTES;
pub use crate::credential::Credential;
pub use crate::scheme::Scheme;
pub use crate::slot::{Slot, SlotKind};

/// Largest release, bytes of JSON.
pub const MAX_RELEASE_BYTES: usize = 256 * 1024;
/// Largest bundle, bytes of the archive.
pub const MAX_BUNDLE_BYTES: u64 = 10 * 1024 * 1024;
/// Most hosts of a function.
pub const MAX_HOSTS: usize = 64;
/// Most variables, egress rules, or credentials of a function, each.
pub const MAX_ENTRIES: usize = 128;
/// Most methods, and most paths, of a perimeter.
pub const MAX_PATTERNS: usize = 32;
/// Largest sum of names and values of the variables, bytes.
pub const MAX_VARS_BYTES: usize = 32 * 1024;
/// Largest request body that a perimeter may allow, bytes.
pub const MAX_BODY_BYTES: u64 = 1024 * 1024 * 1024;

/// Default lifetime of an outgoing call, milliseconds: longer than ordinary APIs take, and short
/// enough that calls which hang do not hold a tenant's share for long.
pub const DEFAULT_CALL_TIME_MS: u32 = 60_000;

/// One release of one function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Release {
    /// The fleet.
    pub fleet: FleetId,
    /// The tenant.
    pub tenant: TenantId,
    /// The function.
    pub function: Name,
    /// Its code.
    pub bundle: BundleRef,
    /// Entry module inside the bundle.
    pub entry: String,
    /// Hosts that lead to it.
    pub hosts: Vec<HostName>,
    /// The requests that reach it.
    pub perimeter: Perimeter,
    /// The limits of a request.
    pub limits: Limits,
    /// Plain variables of `env`.
    #[serde(default)]
    pub vars: Vec<Var>,
    /// Hosts that plain `fetch` may call.
    #[serde(default)]
    pub egress: Vec<EgressRule>,
    /// Credential slots.
    #[serde(default)]
    pub credentials: Vec<Credential>,
    /// Whether `eval` works.
    #[serde(default)]
    pub dynamic_code: bool,
    /// A contact, for people.
    #[serde(default)]
    pub owner: String,
}

/// A bundle by digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BundleRef {
    /// SHA-256 of the archive.
    pub digest: Digest,
    /// Its size.
    pub bytes: u64,
}

/// A plain variable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Var {
    /// Property of `env`.
    pub name: Identifier,
    /// Text.
    pub value: String,
}

/// Checks of a request before the function is woken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Perimeter {
    /// Methods; an empty list means every method.
    #[serde(default)]
    pub methods: Vec<Method>,
    /// Paths; an empty list means every path.
    #[serde(default)]
    pub paths: Vec<PathPattern>,
    /// Largest request body, bytes.
    pub max_body_bytes: u64,
}

/// The limits of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// CPU time, milliseconds of thread time.
    pub cpu_time_ms: u32,
    /// Wall-clock time, milliseconds.
    pub wall_time_ms: u32,
    /// JavaScript heap, and as much again for buffers, MiB. A worker uses at least 32.
    pub heap_mib: u32,
    /// Outgoing calls.
    pub subrequests: u32,
    /// Requests in one worker at a time.
    pub concurrency: u32,
    /// Total lifetime of an outgoing call, from the first byte of its request to the last of its answer,
    /// milliseconds.
    #[serde(default = "default_call_time_ms")]
    pub call_time_ms: u32,
}

const fn default_call_time_ms() -> u32 {
    DEFAULT_CALL_TIME_MS
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            cpu_time_ms: 50,
            wall_time_ms: 30_000,
            heap_mib: 64,
            subrequests: 50,
            concurrency: 64,
            call_time_ms: DEFAULT_CALL_TIME_MS,
        }
    }
}

impl Default for Perimeter {
    fn default() -> Self {
        Self {
            methods: Vec::new(),
            paths: Vec::new(),
            max_body_bytes: 10 * 1024 * 1024,
        }
    }
}

/// A host that plain `fetch` may call, without a credential.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EgressRule {
    /// Scheme.
    pub scheme: Scheme,
    /// Host.
    pub host: HostName,
    /// Port.
    pub port: u16,
    /// Methods; an empty list means every method.
    #[serde(default)]
    pub methods: Vec<Method>,
    /// Paths; an empty list means every path.
    #[serde(default)]
    pub paths: Vec<PathPattern>,
    /// PEM of the certificate authority to trust for this host instead of the node's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<CaPem>,
}

/// Why a release was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReleaseError {
    /// The bytes are not a release.
    #[error("{0}")]
    Format(String),
    /// The release is inconsistent.
    #[error("{0}")]
    Flaw(String),
}

impl Release {
    /// The bytes, whose SHA-256 is the release's name.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("plain data with text as keys is JSON")
    }

    /// Parses bytes from an untrusted sender.
    ///
    /// # Errors
    /// The bytes are too large, not a release, or inconsistent.
    pub fn parse(bytes: &[u8]) -> Result<Self, ReleaseError> {
        if bytes.len() > MAX_RELEASE_BYTES {
            return Err(ReleaseError::Format(format!(
                "expected a release of at most {MAX_RELEASE_BYTES} bytes, got {}",
                bytes.len()
            )));
        }
        let release: Self = serde_json::from_slice(bytes)
            .map_err(|error| ReleaseError::Format(error.to_string()))?;
        release
            .flaw()
            .map_or(Ok(release), |flaw| Err(ReleaseError::Flaw(flaw)))
    }

    /// The inconsistency of the release, if any.
    pub fn flaw(&self) -> Option<String> {
        let counts = [
            ("hosts", self.hosts.len(), MAX_HOSTS),
            ("variables", self.vars.len(), MAX_ENTRIES),
            ("egress rules", self.egress.len(), MAX_ENTRIES),
            ("credentials", self.credentials.len(), MAX_ENTRIES),
            (
                "methods of the perimeter",
                self.perimeter.methods.len(),
                MAX_PATTERNS,
            ),
            (
                "paths of the perimeter",
                self.perimeter.paths.len(),
                MAX_PATTERNS,
            ),
        ];
        if let Some((what, count, most)) = counts.into_iter().find(|(_, count, most)| count > most)
        {
            return Some(format!("expected at most {most} {what}, got {count}"));
        }
        let vars_bytes: usize = self
            .vars
            .iter()
            .map(|var| var.name.as_str().len() + var.value.len())
            .sum();
        if vars_bytes > MAX_VARS_BYTES {
            return Some(format!(
                "expected at most {MAX_VARS_BYTES} bytes of variables, got {vars_bytes}"
            ));
        }
        if self.bundle.bytes > MAX_BUNDLE_BYTES || self.perimeter.max_body_bytes > MAX_BODY_BYTES {
            return Some(format!(
                "expected a bundle of at most {MAX_BUNDLE_BYTES} bytes and bodies of at most {MAX_BODY_BYTES}"
            ));
        }
        if self.entry.is_empty() || self.entry.len() > 256 || self.owner.len() > 256 {
            return Some("expected an entry module, and an owner of at most 256 bytes".into());
        }
        let limits = [
            self.limits.cpu_time_ms,
            self.limits.wall_time_ms,
            self.limits.heap_mib,
            self.limits.concurrency,
            self.limits.call_time_ms,
        ];
        if limits.contains(&0) || self.limits.heap_mib < 8 {
            return Some("expected limits above zero and a heap of at least 8 MiB".into());
        }
        let mut names = BTreeSet::new();
        let env = self.vars.iter().map(|var| &var.name).chain(
            self.credentials
                .iter()
                .map(|credential| &credential.binding),
        );
        if let Some(twice) = env.into_iter().find(|name| !names.insert(*name)) {
            return Some(format!("{twice} appears twice in env"));
        }
        if self.egress.iter().any(|rule| rule.port == 0) {
            return Some("egress: expected a port from 1 to 65535, got 0".into());
        }
        self.credentials.iter().find_map(Credential::flaw)
    }

    /// The hosts that the tenant was not given.
    pub fn hosts_outside<'a>(&'a self, tenant: &'a Tenant) -> impl Iterator<Item = &'a HostName> {
        self.hosts
            .iter()
            .filter(|host| !tenant.hosts.iter().any(|pattern| pattern.covers(host)))
    }

    /// The hosts and ports that the release declares, in a rule or a credential slot, beyond the
    /// tenant's egress ceiling. Whether a host's addresses are in a private network is known only
    /// when a call resolves it.
    pub fn egress_outside<'a>(
        &'a self,
        ceiling: &'a EgressCeiling,
    ) -> impl Iterator<Item = (&'a HostName, u16)> {
        let rules = self.egress.iter().map(|rule| (&rule.host, rule.port));
        let slots = self.credentials.iter().map(|slot| (&slot.host, slot.port));
        rules
            .chain(slots)
            .filter(|(host, port)| !ceiling.allows(host, *port))
    }

    /// The limits that exceed the tenant's ceilings: name, requested value, ceiling.
    pub fn limits_over(
        &self,
        ceilings: &Ceilings,
    ) -> impl Iterator<Item = (&'static str, u32, u32)> + use<> {
        let limits = [
            ("cpu_time_ms", self.limits.cpu_time_ms, ceilings.cpu_time_ms),
            (
                "wall_time_ms",
                self.limits.wall_time_ms,
                ceilings.wall_time_ms,
            ),
            ("heap_mib", self.limits.heap_mib, ceilings.heap_mib),
            ("subrequests", self.limits.subrequests, ceilings.subrequests),
            ("concurrency", self.limits.concurrency, ceilings.concurrency),
            (
                "call_time_ms",
                self.limits.call_time_ms,
                ceilings.call_time_ms,
            ),
        ];
        limits
            .into_iter()
            .filter(|(_, asked, allowed)| asked > allowed)
    }
}
