//! A node: `casemate-launch` with everything that it starts, and its state in a folder of the test.

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

/// Until it listens: V8 starts slowly in a debug build on a busy machine.
const START_TIMEOUT: Duration = Duration::from_secs(120);
/// User ids that one node has to itself.
const UIDS: u32 = 5096;
/// Where a test's user ids begin; a node that was installed has other ones.
const FIRST_UID: u32 = 2_000_000;
/// Number of a vault's user among a node's.
const VAULT_UID: u32 = 2;

/// A node that may be killed and started again.
#[derive(Debug)]
pub struct Node {
    folder: PathBuf,
    uid_base: u32,
    user: Option<u32>,
    running: Option<Running>,
    manager: Option<Manager>,
    /// Where callers reach its gateway.
    pub gateway: SocketAddr,
}

/// What a node's configuration says beyond the defaults.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Names that its vault knows: host and loopback address.
    pub hosts: Vec<String>,
    /// Layers that must be in force.
    pub require: Vec<String>,
    /// Run as this user, without any privilege; else as who runs the test.
    pub user: Option<u32>,
    /// Its workers.
    pub workers: Workers,
}

/// How many workers a node has.
#[derive(Debug, Clone, Copy)]
pub struct Workers {
    /// That wait for a function.
    pub spares: u32,
    /// In all.
    pub max: u32,
}

impl Default for Workers {
    fn default() -> Self {
        Self { spares: 1, max: 16 }
    }
}

impl Node {
    /// Writes its configuration and starts it with a join token.
    pub fn start(folder: &Path, token: &str, settings: &Settings) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        let uid_base = FIRST_UID + std::process::id() % 100_000 * UIDS;
        let token_file = folder.join("join-token");
        std::fs::write(&token_file, token)?;
        std::fs::set_permissions(&token_file, std::fs::Permissions::from_mode(0o400))?;
        // Who opens the token: the vault's user, or the one that everything runs as.
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
        // The port stays the same from now on.
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

    /// Starts it and waits until its gateway listens.
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
        // A socket of an earlier run would answer for nobody.
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
        let listening = listening
            .with_context(|| format!("the node does not listen; it said:\n{}", running.log()))?;
        self.gateway = listening.parse()?;
        self.running = Some(running);
        Ok(())
    }

    /// Has a service manager start it from the next time on. Not of a node with a user of its own.
    pub fn manage(&mut self) -> Result<()> {
        self.manager = Some(Manager::new(&self.folder)?);
        Ok(())
    }

    fn machine_file(&self) -> PathBuf {
        self.folder.join("machine/machine.json")
    }

    /// Says what init would say of the machine, in place of what was said before. From its next start on it is a node that
    /// boots images.
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

    /// Ends launch by SIGKILL, and with it everything of the node.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut running) = self.running.take() {
            running.kill()?;
        }
        Ok(())
    }

    /// Ends it the orderly way.
    pub fn stop(&mut self) -> Result<std::process::ExitStatus> {
        self.running.take().context("the node runs")?.stop()
    }

    /// How it has ended by itself, once it has.
    pub fn ended(&mut self) -> Result<Option<std::process::ExitStatus>> {
        self.running
            .as_mut()
            .context("the node was started")?
            .ended()
    }

    fn admin_socket(&self) -> PathBuf {
        self.folder.join("state/node/admin.sock")
    }

    /// What its admin socket says.
    pub fn status(&self) -> Result<Value> {
        let mut socket = UnixStream::connect(self.admin_socket())?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        let mut text = String::new();
        socket.read_to_string(&mut text)?;
        Ok(serde_json::from_str(&text)?)
    }

    /// Waits until its status is as wanted.
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

    /// Process id of its launcher, which is the parent of all.
    pub fn pid(&self) -> Option<u32> {
        self.running.as_ref().map(Running::pid)
    }

    /// Everything that it has said.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    /// Where everything of it is.
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
