//! The `casemate` command line as a person uses it: each person has a home folder.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::programs::{about_to_run, program};

/// One person's command line.
#[derive(Debug, Clone)]
pub struct Cli {
    home: PathBuf,
}

/// How a command ended, and its output.
#[derive(Debug, Clone)]
pub struct Ran {
    /// Exit code; -1 when a signal ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Cli {
    /// A person whose keys and memory are in `home`.
    pub fn new(home: &Path) -> Result<Self> {
        std::fs::create_dir_all(home).with_context(|| home.display().to_string())?;
        Ok(Self {
            home: home.to_owned(),
        })
    }

    /// The folder with this person's keys and memory.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// The command, ready to run, for callers that want to stream it.
    pub fn command(&self, folder: &Path, args: &[&str]) -> Result<Command> {
        let mut command = Command::new(program("casemate")?);
        command
            .arg("--home")
            .arg(&self.home)
            .args(args)
            .current_dir(folder)
            .env("NO_COLOR", "1");
        Ok(command)
    }

    /// Runs `casemate ARGS` in `folder` with `stdin`.
    pub fn run_in(&self, folder: &Path, args: &[&str], stdin: &[u8]) -> Result<Ran> {
        let mut command = self.command(folder, args)?;
        about_to_run(&command);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        // A command that does not read its input closes the pipe early, which is no error.
        let _closed = child.stdin.take().context("piped")?.write_all(stdin);
        let output = child.wait_with_output()?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(Ran {
            code: output.status.code().unwrap_or(-1),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        })
    }

    /// Runs a command that must succeed; returns its standard output, trimmed.
    pub fn ok(&self, folder: &Path, args: &[&str], stdin: &[u8]) -> Result<String> {
        let ran = self.run_in(folder, args, stdin)?;
        if ran.code != 0 {
            bail!(
                "`casemate {}` ended with {}:\n{}{}",
                args.join(" "),
                ran.code,
                ran.stdout,
                ran.stderr
            );
        }
        Ok(ran.stdout.trim().to_owned())
    }

    /// Runs a command with `--json` that must succeed; returns the printed JSON.
    pub fn json(&self, folder: &Path, args: &[&str]) -> Result<serde_json::Value> {
        let args: Vec<&str> = std::iter::once("--json")
            .chain(args.iter().copied())
            .collect();
        let text = self.ok(folder, &args, b"")?;
        serde_json::from_str(&text)
            .with_context(|| format!("`casemate {}` printed {text}", args.join(" ")))
    }
}
