//! `node.toml`: the operator's settings of a node.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use casemate_config::{Mistake, Mistakes};
use casemate_sandbox::{Access, LayerReport};
use casemate_trust::release::MAX_BUNDLE_BYTES;
use casemate_wire::control::gateway::{CertificateFiles, Listener, MAX_SOCKETS, Shares, Start};
use serde::Deserialize;

use crate::state::{Bounds, Room};

/// The most workers that a node may be told to run: each has a user id and an entry with launch.
const MAX_WORKERS: usize = 4000;

/// The most that `overcommit` may be: with more, the bound is none.
const MAX_OVERCOMMIT: u32 = 100;

/// How long callers wait in the queues of a gateway that does not know its routes. Several times what a vault takes to read and
/// judge what it holds, on a slow machine too.
const LOAD_WAIT_MS: u32 = 20_000;

/// Layers that every program has. Namespaces are a worker's: the others need the network or their folder.
const LAYERS_OF_ALL: &[&str] = &[
    "seccomp",
    "landlock",
    "no_new_privs",
    "capabilities",
    "dumpable",
    "cgroup",
];

/// Layers that the vault has and the other programs but the worker have not.
const LAYERS_OF_VAULT: &[&str] = &["core_scheduling", "memory_lock"];

/// A layer that a worker has no use for: no secret is ever in its memory.
const LAYER_WITHOUT_WORKER: &str = "memory_lock";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    gateway: Gateway,
    #[serde(default)]
    workers: Workers,
    #[serde(default)]
    bundles: Bundles,
    #[serde(default)]
    health: Health,
    #[serde(default)]
    require: Vec<String>,
    #[serde(default)]
    admin_socket: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Gateway {
    #[serde(default)]
    listen: Vec<SocketAddr>,
    #[serde(default)]
    listen_tls: Vec<SocketAddr>,
    #[serde(default)]
    certificates: Vec<Certificate>,
    #[serde(default = "default_connections")]
    max_connections: u32,
    #[serde(default = "default_header_timeout")]
    header_timeout_ms: u32,
    #[serde(default = "default_idle_timeout")]
    idle_timeout_ms: u32,
    /// A quarter of `max_connections` where the file names none.
    #[serde(default)]
    connections_per_network: Option<u32>,
    #[serde(default = "default_prefix_v4")]
    network_prefix_v4: u8,
    #[serde(default = "default_prefix_v6")]
    network_prefix_v6: u8,
    #[serde(default = "default_requests")]
    max_requests: u32,
    /// A quarter of `max_requests` where the file names none.
    #[serde(default)]
    requests_per_tenant: Option<u32>,
}

/// A number that is not what it may be, in the words that every section has for it.
fn out_of_range(section: &str, key: &str, may_be: &str, got: impl std::fmt::Display) -> String {
    format!("{section}: expected `{key}` {may_be}, got {got}")
}

/// What balancers ask.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Health {
    listen: Vec<SocketAddr>,
}

impl Gateway {
    /// What is wrong with its numbers.
    fn numbers(&self) -> Vec<String> {
        let wrong = |key, may_be, got| out_of_range("gateway", key, may_be, got);
        let above_zero = [
            ("max_connections", Some(self.max_connections)),
            ("header_timeout_ms", Some(self.header_timeout_ms)),
            ("idle_timeout_ms", Some(self.idle_timeout_ms)),
            ("max_requests", Some(self.max_requests)),
            ("connections_per_network", self.connections_per_network),
            ("requests_per_tenant", self.requests_per_tenant),
        ];
        let zeros = above_zero
            .into_iter()
            .filter(|(_, number)| *number == Some(0));
        let mut mistakes: Vec<_> = zeros
            .map(|(key, _)| wrong(key, "above zero", 0_u32))
            .collect();
        for (key, bits, most, may_be) in [
            ("network_prefix_v4", self.network_prefix_v4, 32, "up to 32"),
            (
                "network_prefix_v6",
                self.network_prefix_v6,
                128,
                "up to 128",
            ),
        ] {
            if bits > most {
                mistakes.push(wrong(key, may_be, u32::from(bits)));
            }
        }
        mistakes
    }

    fn shares(&self) -> Shares {
        let quarter = |most: u32| (most / 4).max(1);
        Shares {
            connections_per_network: self
                .connections_per_network
                .unwrap_or_else(|| quarter(self.max_connections)),
            network_prefix_v4: self.network_prefix_v4,
            network_prefix_v6: self.network_prefix_v6,
            requests: self.max_requests,
            requests_per_tenant: self
                .requests_per_tenant
                .unwrap_or_else(|| quarter(self.max_requests)),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Certificate {
    chain: PathBuf,
    key: PathBuf,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Workers {
    spares: usize,
    max: usize,
    overcommit: u32,
    idle_secs: u64,
}

impl Workers {
    /// What is wrong with its numbers.
    fn numbers(&self) -> Vec<String> {
        let wrong = |key, may_be: String, got| out_of_range("workers", key, &may_be, got);
        let mut mistakes = Vec::new();
        if !(1..=MAX_WORKERS).contains(&self.max) {
            mistakes.push(wrong("max", format!("from 1 to {MAX_WORKERS}"), self.max));
        }
        if self.spares > self.max {
            let may_be = format!("of at most `max` ({})", self.max);
            mistakes.push(wrong("spares", may_be, self.spares));
        }
        if !(1..=MAX_OVERCOMMIT).contains(&self.overcommit) {
            let may_be = format!("from 1 to {MAX_OVERCOMMIT}");
            mistakes.push(wrong("overcommit", may_be, self.overcommit as usize));
        }
        mistakes
    }
}

impl Default for Workers {
    fn default() -> Self {
        Self {
            spares: 2,
            max: 200,
            // An idle worker occupies a thirtieth of the limit that a small function's worker has.
            overcommit: 4,
            idle_secs: 300,
        }
    }
}

/// Room for bundles on the disk.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Bundles {
    /// Half of the disk where the file says nothing.
    max_mib: Option<u64>,
    /// A quarter of that where the file says nothing.
    tenant_mib: Option<u64>,
}

impl Bundles {
    const LEAST_MIB: u64 = MAX_BUNDLE_BYTES >> 20;

    /// What is wrong with its numbers.
    fn numbers(&self) -> Vec<String> {
        let wrong = |key, may_be: String, got| out_of_range("bundles", key, &may_be, got);
        let mut mistakes = Vec::new();
        for (key, mib) in [("max_mib", self.max_mib), ("tenant_mib", self.tenant_mib)] {
            if let Some(mib) = mib.filter(|mib| *mib < Self::LEAST_MIB) {
                let may_be = format!("of at least {}", Self::LEAST_MIB);
                mistakes.push(wrong(key, may_be, mib));
            }
        }
        if let (Some(most), Some(tenant)) = (self.max_mib, self.tenant_mib)
            && tenant > most
        {
            let may_be = format!("of at most `max_mib` ({most})");
            mistakes.push(wrong("tenant_mib", may_be, tenant));
        }
        mistakes
    }

    fn room(&self, state: &Path) -> Room {
        let bytes = |mib: u64| mib.saturating_mul(1 << 20);
        let half = || disk_bytes(state) / 2;
        let all_bytes = self.max_mib.map_or_else(half, bytes);
        Room::of(all_bytes, self.tenant_mib.map(bytes))
    }
}

/// Size of the disk that the folder lies, or will lie, on; 0 if that cannot be said.
fn disk_bytes(folder: &Path) -> u64 {
    let there = folder.ancestors().find(|folder| folder.exists());
    let found = there.and_then(|folder| rustix::fs::statvfs(folder).ok());
    found.map_or(0, |found| found.f_blocks.saturating_mul(found.f_frsize))
}

fn default_connections() -> u32 {
    10_000
}

/// A /24 is the smallest IPv4 network that is routed by itself.
fn default_prefix_v4() -> u8 {
    24
}

/// A /56 is what many providers give one customer.
fn default_prefix_v6() -> u8 {
    56
}

fn default_requests() -> u32 {
    8192
}

fn default_header_timeout() -> u32 {
    10_000
}

fn default_idle_timeout() -> u32 {
    60_000
}

/// The settings, checked.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) state: PathBuf,
    pub(crate) gateway: Start,
    pub(crate) bounds: Bounds,
    pub(crate) admin_socket: PathBuf,
    /// Where init says what it does with the machine, if this is one that boots images.
    pub(crate) machine: Option<PathBuf>,
    require: Vec<String>,
    file: PathBuf,
}

impl Config {
    /// Reads the file; relative paths in it are relative to it.
    #[expect(clippy::too_many_lines, reason = "older than the limit")]
    pub(crate) fn read(
        file: &Path,
        state: &Path,
        machine: Option<PathBuf>,
    ) -> Result<Self, Mistakes> {
        let read: File = casemate_config::read(file)?;
        let folder = file.parent().unwrap_or(Path::new("."));
        let mut mistakes = Vec::new();
        let mut mistake = |message: String| mistakes.push(Mistake { line: 0, message });
        let gateway = &read.gateway;
        if gateway.listen.is_empty() && gateway.listen_tls.is_empty() {
            mistake("gateway: expected an address in `listen` or `listen_tls`, such as \"0.0.0.0:8080\"".into());
        }
        let sockets = gateway.listen.len() + gateway.listen_tls.len() + read.health.listen.len();
        if sockets > MAX_SOCKETS {
            mistake(format!(
                "gateway: expected at most {MAX_SOCKETS} addresses in `listen`, `listen_tls` and \
                 [health] together, got {sockets}"
            ));
        }
        if !gateway.listen_tls.is_empty() && gateway.certificates.is_empty() {
            mistake(
                "gateway: `listen_tls` needs a [[gateway.certificates]] with `chain` and `key`"
                    .into(),
            );
        }
        let numbers = [
            gateway.numbers(),
            read.workers.numbers(),
            read.bundles.numbers(),
        ];
        numbers.concat().into_iter().for_each(&mut mistake);
        if let Err(unknown) = casemate_sandbox::missing(&read.require, &[]) {
            mistake(format!("require: {unknown}"));
        }
        if !mistakes.is_empty() {
            return Err(Mistakes {
                file: file.to_owned(),
                mistakes,
            });
        }
        let listener = |tls: bool| {
            move |address: &SocketAddr| Listener {
                address: address.to_string(),
                tls,
            }
        };
        let place = |path: &Path| folder.join(path).to_string_lossy().into_owned();
        let listeners = gateway
            .listen
            .iter()
            .map(listener(false))
            .chain(gateway.listen_tls.iter().map(listener(true)))
            .collect();
        let certificates = gateway
            .certificates
            .iter()
            .map(|files| CertificateFiles {
                chain: place(&files.chain),
                key: place(&files.key),
            })
            .collect();
        Ok(Self {
            state: state.to_owned(),
            gateway: Start {
                listeners,
                health: read.health.listen.iter().map(ToString::to_string).collect(),
                load_wait_ms: LOAD_WAIT_MS,
                certificates,
                max_connections: gateway.max_connections,
                header_timeout_ms: gateway.header_timeout_ms,
                idle_timeout_ms: gateway.idle_timeout_ms,
                shares: gateway.shares(),
            },
            bounds: Bounds {
                spares: read.workers.spares,
                max_workers: read.workers.max,
                memory_mib: casemate_sandbox::workers_memory_mib().unwrap_or(u32::MAX),
                overcommit: read.workers.overcommit,
                idle_ms: read.workers.idle_secs * 1000,
                room: read.bundles.room(state),
            },
            admin_socket: state.join(read.admin_socket.unwrap_or_else(|| "admin.sock".into())),
            machine,
            require: read.require,
            file: file.to_owned(),
        })
    }

    /// What stays open behind the walls.
    pub(crate) fn paths(&self) -> Vec<(&Path, Access)> {
        let read = [
            "/etc/resolv.conf",
            "/etc/hosts",
            "/etc/nsswitch.conf",
            "/etc/host.conf",
            "/etc/gai.conf",
            "/proc/self",
            "/sys/fs/cgroup",
        ];
        let mut paths = vec![
            (self.state.as_path(), Access::ReadWrite),
            (self.file.as_path(), Access::Read),
        ];
        // Its folder: a file that takes the place of another is not that one, to Landlock.
        let machine = self.machine.as_deref().and_then(Path::parent);
        paths.extend(machine.map(|folder| (folder, Access::Read)));
        paths.extend(read.into_iter().map(|path| (Path::new(path), Access::Read)));
        paths
    }

    /// Whether what the operator requires is in force in a program, as far as every program has it.
    pub(crate) fn must_be_in_force(
        &self,
        program: &str,
        layers: &[LayerReport],
    ) -> Result<(), String> {
        let of_all = |name: &&String| LAYERS_OF_ALL.contains(&name.as_str());
        let own: Vec<String> = self.require.iter().filter(of_all).cloned().collect();
        none_missing(program, &own, layers)
    }

    /// Whether what the operator requires is in force in the vault.
    pub(crate) fn must_be_in_force_in_the_vault(
        &self,
        layers: &[LayerReport],
    ) -> Result<(), String> {
        let of_vault = |name: &&String| {
            LAYERS_OF_ALL.contains(&name.as_str()) || LAYERS_OF_VAULT.contains(&name.as_str())
        };
        let own: Vec<String> = self.require.iter().filter(of_vault).cloned().collect();
        none_missing("the vault", &own, layers)
    }

    /// Whether what the operator requires is in force in a worker, which has every layer but one.
    pub(crate) fn must_be_in_force_in_a_worker(
        &self,
        layers: &[LayerReport],
    ) -> Result<(), String> {
        let of_worker = |name: &&String| name.as_str() != LAYER_WITHOUT_WORKER;
        let own: Vec<String> = self.require.iter().filter(of_worker).cloned().collect();
        none_missing("a worker", &own, layers)
    }
}

fn none_missing(program: &str, require: &[String], layers: &[LayerReport]) -> Result<(), String> {
    let missing =
        casemate_sandbox::missing(require, layers).map_err(|unknown| unknown.to_string())?;
    if missing.is_empty() {
        return Ok(());
    }
    Err(format!(
        "layers that `require` names are not in force in {program}: {}",
        missing.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gateway_is_divided_into_quarters_where_nothing_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("node.toml");
        let shares = |more: &str| {
            std::fs::write(&file, format!("[gateway]\nlisten = [\"[::]:80\"]\n{more}")).unwrap();
            Config::read(&file, folder.path(), None).map(|config| config.gateway.shares)
        };
        let expected = Shares {
            connections_per_network: 2500,
            network_prefix_v4: 24,
            network_prefix_v6: 56,
            requests: 8192,
            requests_per_tenant: 2048,
        };
        assert_eq!(shares("").unwrap(), expected);
        let expected = Shares {
            connections_per_network: 10_000,
            network_prefix_v4: 32,
            ..expected
        };
        let said = "connections_per_network = 10000\nnetwork_prefix_v4 = 32\n";
        assert_eq!(shares(said).unwrap(), expected);
        for mistake in [
            "network_prefix_v4 = 33",
            "network_prefix_v6 = 129",
            "max_requests = 0",
            "connections_per_network = 0",
            "requests_per_tenant = 0",
        ] {
            let text = shares(mistake).unwrap_err().to_string();
            let (key, value) = mistake.split_once(" = ").unwrap();
            let told = format!("gateway: expected `{key}` ");
            let got = format!(", got {value}");
            assert!(
                text.contains(&told) && text.contains(&got),
                "{mistake}: {text}"
            );
        }
    }

    #[test]
    fn bundles_have_half_of_the_disk_and_a_tenant_a_quarter_of_that() {
        const MIB: u64 = 1 << 20;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("node.toml");
        let room = |more: &str| {
            let text = format!("[gateway]\nlisten = [\"[::]:80\"]\n[bundles]\n{more}");
            std::fs::write(&file, text).unwrap();
            Config::read(&file, folder.path(), None).map(|config| config.bounds.room)
        };
        let half = disk_bytes(folder.path()) / 2;
        assert!(half > 0);
        assert_eq!(room("").unwrap(), Room::of(half, None));
        let said = room("max_mib = 400").unwrap();
        assert_eq!((said.all_bytes, said.tenant_bytes), (400 * MIB, 100 * MIB));
        let said = room("max_mib = 400\ntenant_mib = 300").unwrap();
        assert_eq!(said.tenant_bytes, 300 * MIB);
        for (mistake, told) in [
            ("max_mib = 9", "`max_mib` of at least 10, got 9"),
            ("tenant_mib = 0", "`tenant_mib` of at least 10, got 0"),
            (
                "max_mib = 20\ntenant_mib = 21",
                "`tenant_mib` of at most `max_mib` (20), got 21",
            ),
        ] {
            let text = room(mistake).unwrap_err().to_string();
            let told = format!("bundles: expected {told}");
            assert!(text.contains(&told), "{mistake}: {text}");
        }
        let small = Room::of(0, None);
        assert_eq!((small.all_bytes, small.tenant_bytes), (10 * MIB, 10 * MIB));
    }

    #[test]
    fn a_gateway_has_no_more_sockets_than_launch_holds() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("node.toml");
        let read = |sockets: usize| {
            let addresses: Vec<_> = (1..=sockets).map(|port| format!("[::]:{port}")).collect();
            let text =
                format!("[gateway]\nlisten = {addresses:?}\n[health]\nlisten = [\"[::]:9\"]\n");
            std::fs::write(&file, text).unwrap();
            Config::read(&file, folder.path(), None)
        };
        read(MAX_SOCKETS - 1).unwrap();
        let text = read(MAX_SOCKETS).unwrap_err().to_string();
        assert!(text.contains("at most 256 addresses"), "{text}");
        assert!(text.contains("got 257"), "{text}");
    }

    #[test]
    fn mistakes_are_shown_together() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("node.toml");
        std::fs::write(
            &file,
            "require = [\"moat\"]\n[gateway]\nlisten_tls = [\"127.0.0.1:0\"]\n[workers]\nmax = 0\n",
        )
        .unwrap();
        let text = Config::read(&file, folder.path(), None)
            .unwrap_err()
            .to_string();
        for part in ["moat", "certificates", "workers"] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        std::fs::write(&file, "[gateway]\nlisten = [\"127.0.0.1\"]\nport = 1\n").unwrap();
        let text = Config::read(&file, folder.path(), None)
            .unwrap_err()
            .to_string();
        assert!(text.contains(":2:") && text.contains(":3:"), "{text}");
    }
}
