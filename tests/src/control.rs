//! A control plane: `casemate-control`, with its state in a folder of the test.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::programs::{Running, about_to_run, program, wait_until};

/// Time within which the control plane must listen.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// A control plane that a test can stop and start again on the same ports.
#[derive(Debug)]
pub struct Control {
    folder: PathBuf,
    running: Option<Running>,
    /// The address by which nodes reach the control plane, if it is not this machine's loopback
    /// address.
    seen_as: Option<String>,
    /// Address of the HTTPS API.
    pub api: SocketAddr,
    /// Address of the QUIC socket.
    pub quic: SocketAddr,
}

impl Control {
    /// Makes the keys and starts the control plane, on ports that the kernel chooses and that later
    /// starts keep.
    ///
    /// `seen_as` is the address by which nodes reach this machine, if it is not the loopback
    /// address.
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
            // A second start, because the port is known only now.
            control.kill()?;
            control.restart()?;
        }
        Ok(control)
    }

    /// The folder of its keys and its store.
    pub fn state(&self) -> PathBuf {
        self.folder.join("state")
    }

    /// The log of the control plane.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    /// The process id while the control plane runs.
    pub fn pid(&self) -> Option<u32> {
        self.running.as_ref().map(Running::pid)
    }

    /// Kills the control plane with SIGKILL.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut running) = self.running.take() {
            running.kill()?;
        }
        Ok(())
    }

    /// Copies the state into a new folder, whether or not the control plane runs.
    pub fn backup(&self, to: &Path) -> Result<()> {
        run(Command::new(program("casemate-control")?)
            .arg("backup")
            .arg("--state")
            .arg(self.state())
            .arg("--to")
            .arg(to))
    }

    /// Sets the state aside and puts a backup in its place, as after the loss of a disk. The
    /// control plane is stopped meanwhile.
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

    /// Starts the control plane with the same state and ports.
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
        // The file may be left over from an earlier run.
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
        let found = found.context("the control plane does not listen in time")?;
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
