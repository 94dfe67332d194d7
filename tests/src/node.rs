//! A node: `casemate-launch` with all programs that it starts, and its state in a folder of the
//! test.

use std::io::Read as _;
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::manager::Manager;
use crate::programs::{Running, about_to_run, program, wait_until};

/// Time within which the node must listen: V8 starts slowly in a debug build on a busy machine.
const START_TIMEOUT: Duration = Duration::from_secs(120);
/// Number of user ids that belong to one node.
const UIDS: u32 = 5096;
/// The first user id of the tests' nodes; an installed node has others.
const FIRST_UID: u32 = 2_000_000;
/// Offset of the vault's user id among the node's.
const VAULT_UID: u32 = 2;

/// A node that a test can kill and start again.
#[derive(Debug)]
pub struct Node {
    folder: PathBuf,
    uid_base: u32,
    user: Option<u32>,
    running: Option<Running>,
    manager: Option<Manager>,
    /// Where callers reach the node's gateway.
    pub gateway: SocketAddr,
}

/// Settings that differ from the defaults of a node's configuration.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Names that the vault resolves: host and loopback address.
    pub hosts: Vec<String>,
    /// Sandbox layers that must be in force.
    pub require: Vec<String>,
    /// The user that the node runs as, without any privilege; by default the user of the test.
    pub user: Option<u32>,
    /// Limits on the number of workers.
    pub workers: Workers,
}

/// Limits on the number of workers.
#[derive(Debug, Clone, Copy)]
pub struct Workers {
    /// Spare workers, which wait for a function.
    pub spares: u32,
    /// Most workers in all.
    pub max: u32,
}

impl Default for Workers {
    fn default() -> Self {
        Self { spares: 1, max: 16 }
    }
}

impl Node {
    /// Writes the node's configuration and starts the node with a join token.
    pub fn start(folder: &Path, token: &str, settings: &Settings) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        let uid_base = FIRST_UID + std::process::id() % 100_000 * UIDS;
        let token_file = folder.join("join-token");
        std::fs::write(&token_file, token)?;
        std::fs::set_permissions(&token_file, std::fs::Permissions::from_mode(0o400))?;
        // The token belongs to the user that opens it: the vault's user, or the one that the whole
        // node runs as.
        match settings.user {
            Some(user) => {
                chown(&token_file, Some(user), Some(user))?;
                chown(folder, Some(user), Some(user))?;
            }
            None if rustix::process::geteuid().is_root() => {
                chown(
                    &token_file,
                    Some(uid_base + VAULT_UID),
                    Some(uid_base + VAULT_UID),
                )?;
            }
            None => {}
        }
        let require = serde_json::to_string(&settings.require)?;
        let hosts: String = settings
            .hosts
            .iter()
            .map(|host| format!("\"{host}\" = [\"127.0.0.1\"]\n"))
            .collect();
        let vault = format!(
            "join_token_file = \"join-token\"\nprivate_addresses = [\"127.0.0.0/8\"]\ntrust_anchors = []\n[resolver.hosts]\n{hosts}"
        );
        std::fs::write(folder.join("vault.toml"), vault)?;
        let mut node = Self {
            folder: folder.to_owned(),
            uid_base,
            user: settings.user,
            running: None,
            manager: None,
            gateway: "127.0.0.1:0".parse()?,
        };
        node.write_config(&require, settings.workers)?;
        node.restart()?;
        // Later starts use the port that the first start was given.
        node.write_config(&require, settings.workers)?;
        Ok(node)
    }

    fn write_config(&self, require: &str, workers: Workers) -> Result<()> {
        let Workers { spares, max } = workers;
        let text = format!(
            "require = {require}\n[gateway]\nlisten = [\"{}\"]\n[workers]\nspares = {spares}\nmax = {max}\novercommit = 100\n",
            self.gateway
        );
        Ok(std::fs::write(self.folder.join("node.toml"), text)?)
    }

    /// Starts the node and waits until its gateway listens.
    pub fn restart(&mut self) -> Result<()> {
        let state = self.folder.join("state");
        let mut command = Command::new(program("casemate-launch")?);
        command
            .arg("--node")
            .arg(self.folder.join("node.toml"))
            .arg("--vault")
            .arg(self.folder.join("vault.toml"));
        command
            .arg("--state")
            .arg(&state)
            .arg("--uid-base")
            .arg(self.uid_base.to_string());
        if self.machine_file().exists() {
            command.arg("--machine").arg(self.machine_file());
        }
        if let Some(user) = self.user {
            command.uid(user).gid(user);
        }
        about_to_run(&command);
        // A socket of an earlier run would accept no connection.
        let _removed = std::fs::remove_file(self.admin_socket());
        if let Some(manager) = &mut self.manager {
            command = manager.wrap(&command)?;
        }
        let mut running = Running::start("casemate-launch", command, &self.folder.join("log"))?;
        let listening = wait_until(START_TIMEOUT, || {
            if let Some(status) = running.ended()? {
                bail!("casemate-launch ended with {status}:\n{}", running.log());
            }
            let Ok(status) = self.status() else {
                return Ok(None);
            };
            Ok(status["listening"][0].as_str().map(ToOwned::to_owned))
        });
        let listening = listening.with_context(|| {
            format!(
                "the node does not listen in time; its log:\n{}",
                running.log()
            )
        })?;
        self.gateway = listening.parse()?;
        self.running = Some(running);
        Ok(())
    }

    /// Later starts have a service manager. Not for a node with a user of its own.
    pub fn manage(&mut self) -> Result<()> {
        self.manager = Some(Manager::new(&self.folder)?);
        Ok(())
    }

    fn machine_file(&self) -> PathBuf {
        self.folder.join("machine/machine.json")
    }

    /// Writes the machine's state as init would write it, in place of the earlier state. From its
    /// next start on the node is one that boots images.
    pub fn say_of_machine(&self, said: &Value) -> Result<()> {
        let (file, new) = (self.machine_file(), self.folder.join("machine/new"));
        let open = |path: &Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        };
        let folder = self.folder.join("machine");
        std::fs::create_dir_all(&folder)?;
        open(&folder, 0o755)?;
        std::fs::write(&new, said.to_string())?;
        open(&new, 0o644)?;
        Ok(std::fs::rename(new, file)?)
    }

    /// Kills launch with SIGKILL, and thereby all programs of the node.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut running) = self.running.take() {
            running.kill()?;
        }
        Ok(())
    }

    /// Ends the node with SIGTERM.
    pub fn stop(&mut self) -> Result<std::process::ExitStatus> {
        self.running
            .take()
            .context("the node is not running")?
            .stop()
    }

    /// The exit status, if the node has ended by itself.
    pub fn ended(&mut self) -> Result<Option<std::process::ExitStatus>> {
        self.running
            .as_mut()
            .context("the node is not running")?
            .ended()
    }

    fn admin_socket(&self) -> PathBuf {
        self.folder.join("state/node/admin.sock")
    }

    /// The node's status, from its admin socket.
    pub fn status(&self) -> Result<Value> {
        let mut socket = UnixStream::connect(self.admin_socket())?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        let mut text = String::new();
        socket.read_to_string(&mut text)?;
        Ok(serde_json::from_str(&text)?)
    }

    /// Waits until `is_wanted` accepts the node's status.
    pub fn wait_for(
        &self,
        what: &str,
        within: Duration,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let found = wait_until(within, || {
            Ok(self.status().ok().filter(|status| wanted(status)))
        });
        found.with_context(|| {
            format!(
                "waiting for: {what}; status {:?}; log:\n{}",
                self.status(),
                self.log()
            )
        })
    }

    /// Process id of launch, the parent of all the node's processes.
    pub fn pid(&self) -> Option<u32> {
        self.running.as_ref().map(Running::pid)
    }

    /// The node's log.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    /// The folder of the node's configuration and state.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Process ids of the workers that serve a function.
    pub fn workers(&self) -> Result<Vec<u32>> {
        let status = self.status()?;
        let workers = status["workers"].as_array().context("workers")?;
        Ok(workers
            .iter()
            .filter_map(|worker| u32::try_from(worker["pid"].as_u64()?).ok())
            .collect())
    }
}
