//! `vault.toml`: the node's own settings, which come from the operator's file alone.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use casemate_config::{Mistake, Mistakes};
use casemate_sandbox::Access;
use ipnet::IpNet;
use serde::Deserialize;

/// Default length of a lease: a day.
const DEFAULT_LEASE_SECS: u64 = 24 * 60 * 60;
/// Shortest lease: with a shorter one, a moment without the control plane would stop credentials.
const MIN_LEASE_SECS: u64 = 10;
/// Longest lease: a stolen node can use credentials for so long.
const MAX_LEASE_SECS: u64 = 30 * 24 * 60 * 60;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    join_token_file: Option<PathBuf>,
    #[serde(default)]
    storage_key_file: Option<PathBuf>,
    #[serde(default = "default_lease")]
    lease_secs: u64,
    #[serde(default)]
    private_addresses: Vec<IpNet>,
    #[serde(default = "default_anchors")]
    trust_anchors: Vec<String>,
    #[serde(default)]
    resolver: Resolver,
    #[serde(default)]
    require: Vec<String>,
    #[serde(default)]
    accept_lost_memory: bool,
}

/// How names become addresses.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Resolver {
    /// Name servers; none means the machine's own.
    pub(crate) servers: Vec<IpAddr>,
    /// Names that are resolved without a name server.
    pub(crate) hosts: BTreeMap<String, Vec<IpAddr>>,
}

/// The settings, checked.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) state: PathBuf,
    pub(crate) join_token_file: Option<PathBuf>,
    pub(crate) storage_key_file: PathBuf,
    pub(crate) lease_ms: u64,
    /// Networks that are not public and may be dialled all the same.
    pub(crate) private_addresses: Vec<IpNet>,
    /// `system`, or PEM files.
    pub(crate) trust_anchors: Vec<String>,
    pub(crate) resolver: Resolver,
    pub(crate) require: Vec<String>,
    pub(crate) accept_lost_memory: bool,
    file: PathBuf,
}

fn default_lease() -> u64 {
    DEFAULT_LEASE_SECS
}

fn default_anchors() -> Vec<String> {
    vec!["system".to_owned()]
}

impl Config {
    /// Reads the file; relative paths in it are relative to it.
    pub(crate) fn read(file: &Path, state: &Path) -> Result<Self, Mistakes> {
        let read: File = casemate_config::read(file)?;
        let folder = file.parent().unwrap_or(Path::new("."));
        let mut mistakes = Vec::new();
        let mut mistake = |message: String| mistakes.push(Mistake { line: 0, message });
        if !(MIN_LEASE_SECS..=MAX_LEASE_SECS).contains(&read.lease_secs) {
            mistake(format!(
                "lease_secs: expected {MIN_LEASE_SECS} to {MAX_LEASE_SECS}, got {}",
                read.lease_secs
            ));
        }
        if let Err(unknown) = casemate_sandbox::missing(&read.require, &[]) {
            mistake(format!("require: {unknown}"));
        }
        for host in read
            .resolver
            .hosts
            .keys()
            .filter(|host| host.parse::<casemate_trust::host::HostName>().is_err())
        {
            mistake(format!(
                "resolver.hosts: expected a host name in lower case, got {host:?}"
            ));
        }
        for anchor in read
            .trust_anchors
            .iter()
            .filter(|anchor| anchor.as_str() != "system" && !folder.join(anchor).is_file())
        {
            mistake(format!(
                "trust_anchors: expected `system` or a PEM file, found nothing at {anchor:?}"
            ));
        }
        if !mistakes.is_empty() {
            return Err(Mistakes {
                file: file.to_owned(),
                mistakes,
            });
        }
        let place = |anchor: String| {
            if anchor == "system" {
                anchor
            } else {
                folder.join(anchor).to_string_lossy().into_owned()
            }
        };
        Ok(Self {
            state: state.to_owned(),
            join_token_file: read.join_token_file.map(|path| folder.join(path)),
            storage_key_file: read
                .storage_key_file
                .map_or_else(|| state.join("storage.key"), |path| folder.join(path)),
            lease_ms: read.lease_secs * 1000,
            private_addresses: read.private_addresses,
            trust_anchors: read.trust_anchors.into_iter().map(place).collect(),
            resolver: read.resolver,
            require: read.require,
            accept_lost_memory: read.accept_lost_memory,
            file: file.to_owned(),
        })
    }

    /// Paths that stay accessible inside the sandbox.
    pub(crate) fn paths(&self) -> Vec<(&Path, Access)> {
        let system = [
            "/etc/resolv.conf",
            "/etc/hosts",
            "/etc/nsswitch.conf",
            "/etc/ssl",
            "/usr/share/ca-certificates",
            "/usr/local/share/ca-certificates",
        ];
        let read = [
            "/proc/sys/kernel/random/boot_id",
            "/proc/self",
            "/sys/fs/cgroup",
            "/proc/meminfo",
        ];
        let files = [Some(&self.file), self.join_token_file.as_ref()];
        let mut paths = vec![(self.state.as_path(), Access::ReadWrite)];
        paths.extend(
            self.storage_key_file
                .parent()
                .map(|folder| (folder, Access::ReadWrite)),
        );
        paths.extend(
            files
                .into_iter()
                .flatten()
                .map(|file| (file.as_path(), Access::Read)),
        );
        paths.extend(
            self.trust_anchors
                .iter()
                .filter(|anchor| *anchor != "system")
                .map(|anchor| (Path::new(anchor), Access::Read)),
        );
        paths.extend(
            system
                .into_iter()
                .chain(read)
                .map(|path| (Path::new(path), Access::Read)),
        );
        paths
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistakes_are_shown_together() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("vault.toml");
        let text = "lease_secs = 1\nrequire = [\"moat\"]\ntrust_anchors = [\"none.pem\"]\n[resolver.hosts]\n\"A.test\" = []\n";
        std::fs::write(&file, text).unwrap();
        let text = Config::read(&file, folder.path()).unwrap_err().to_string();
        for part in ["lease_secs", "moat", "A.test", "none.pem"] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        std::fs::write(&file, "lease = 1\nprivate_addresses = [\"10.0.0.0/99\"]\n").unwrap();
        let text = Config::read(&file, folder.path()).unwrap_err().to_string();
        assert!(text.contains(":1:") && text.contains(":2:"), "{text}");
    }
}
