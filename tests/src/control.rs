//! A control plane: `casemate-control`, with its state in a folder of the test.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::programs::{Running, about_to_run, program, wait_until};

/// Until it listens.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// A control plane that may be stopped and started again on the same ports.
#[derive(Debug)]
pub struct Control {
    folder: PathBuf,
    running: Option<Running>,
    /// The address by which nodes reach it, where that is not this machine's own.
    seen_as: Option<String>,
    /// Of the HTTPS API.
    pub api: SocketAddr,
    /// Of the QUIC socket.
    pub quic: SocketAddr,
}

impl Control {
    /// Makes the keys and the first start, on ports that the kernel chooses and that are kept from
    /// then on.
    ///
    /// `seen_as` is the address by which nodes reach this machine, where that is not the loopback
    /// one.
    pub fn start(folder: &Path, seen_as: Option<&str>) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        let mut init = Command::new(program("casemate-control")?);
        init.arg("init").arg("--state").arg(folder.join("state"));
        about_to_run(&init);
        let made = init.output()?;
        if !made.status.success() {
            bail!(
                "casemate-control init ended with {}:\n{}",
                made.status,
                String::from_utf8_lossy(&made.stderr)
            );
        }
        let any = "127.0.0.1:0".parse()?;
        let mut control = Self {
            folder: folder.to_owned(),
            running: None,
            seen_as: seen_as.map(ToOwned::to_owned),
            api: any,
            quic: any,
        };
        control.restart()?;
        if seen_as.is_some() {
            // Now that its port is known.
            control.kill()?;
            control.restart()?;
        }
        Ok(control)
    }

    /// Where its keys and its store are.
    pub fn state(&self) -> PathBuf {
        self.folder.join("state")
    }

    /// Everything that it has said.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    /// Process id while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.running.as_ref().map(Running::pid)
    }

    /// Ends it by SIGKILL.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut running) = self.running.take() {
            running.kill()?;
        }
        Ok(())
    }

    /// Copies its state into a new folder, whether or not it runs.
    pub fn backup(&self, to: &Path) -> Result<()> {
        run(Command::new(program("casemate-control")?)
            .arg("backup")
            .arg("--state")
            .arg(self.state())
            .arg("--to")
            .arg(to))
    }

    /// Puts its state aside and the one of a backup in its place, as after the loss of a disk. It
    /// does not run meanwhile.
    pub fn restore(&mut self, from: &Path) -> Result<()> {
        self.kill()?;
        std::fs::rename(self.state(), self.folder.join("lost"))?;
        run(Command::new(program("casemate-control")?)
            .arg("restore")
            .arg("--from")
            .arg(from)
            .arg("--state")
            .arg(self.state()))?;
        self.restart()
    }

    /// Starts it where it was.
    pub fn restart(&mut self) -> Result<()> {
        let config = self.folder.join("control.toml");
        let mut text = format!(
            "state = \"state\"\napi = \"{}\"\nquic = \"{}\"\n",
            self.api, self.quic
        );
        if let (Some(host), 1..) = (&self.seen_as, self.quic.port()) {
            text += &format!("public_quic = \"{host}:{}\"\n", self.quic.port());
        }
        std::fs::write(&config, text)?;
        let addresses = self.state().join("addresses.json");
        // Of an earlier run.
        let _removed = std::fs::remove_file(&addresses);
        let mut command = Command::new(program("casemate-control")?);
        command.arg("serve").arg("--config").arg(&config);
        about_to_run(&command);
        let mut running = Running::start("casemate-control", command, &self.folder.join("log"))?;
        let found = wait_until(START_TIMEOUT, || {
            if let Some(status) = running.ended()? {
                bail!("casemate-control ended with {status}:\n{}", running.log());
            }
            let Ok(text) = std::fs::read_to_string(&addresses) else {
                return Ok(None);
            };
            Ok(serde_json::from_str::<serde_json::Value>(&text).ok())
        });
        let found = found.context("the control plane does not listen")?;
        let address = |name: &str| -> Result<SocketAddr> {
            Ok(found[name].as_str().context("an address")?.parse()?)
        };
        (self.api, self.quic) = (address("api")?, address("quic")?);
        self.running = Some(running);
        Ok(())
    }
}

fn run(command: &mut Command) -> Result<()> {
    let ran = command.output()?;
    if ran.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&ran.stderr);
    bail!("{command:?} ended with {}:\n{said}", ran.status)
}
