//! The real programs as child processes: where they are, and how they are started, logged and
//! ended.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use parking_lot::Mutex;

/// Time from SIGTERM until a program is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);
/// Pause between two polls of an awaited condition.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// The receiver of each command that a person would type.
static LISTENER: OnceLock<fn(&str)> = OnceLock::new();
/// The folder in which the last reported command ran.
static FOLDER: Mutex<Option<PathBuf>> = Mutex::new(None);

/// Programs that are taken from the folder of an earlier build.
static ELSEWHERE: Mutex<BTreeMap<String, PathBuf>> = Mutex::new(BTreeMap::new());

/// From now on, these programs are taken from `folder`; without a folder, from this program's own.
pub fn take_from(folder: Option<&Path>, names: &[&str]) {
    let mut elsewhere = ELSEWHERE.lock();
    for name in names {
        match folder {
            Some(folder) => drop(elsewhere.insert((*name).to_owned(), folder.to_owned())),
            None => drop(elsewhere.remove(*name)),
        }
    }
}

/// From now on, `listener` receives each command that a person would type, in a shell's syntax.
pub fn tell_commands(listener: fn(&str)) {
    // A second listener is ignored: each listener would receive only half of the commands.
    let _first = LISTENER.set(listener);
}

/// Reports a command to the listener before it runs, with a change of folder if the folder differs
/// from the last one.
pub fn about_to_run(command: &Command) {
    let Some(listener) = LISTENER.get() else {
        return;
    };
    let mut folder = FOLDER.lock();
    if let Some(new) = command
        .get_current_dir()
        .filter(|new| Some(*new) != folder.as_deref())
    {
        listener(&format!("cd {}", quoted(&new.to_string_lossy())));
        *folder = Some(new.to_owned());
    }
    let program = Path::new(command.get_program());
    let name = program.file_name().unwrap_or(program.as_os_str());
    let words = std::iter::once(name).chain(command.get_args());
    let words: Vec<_> = words.map(|word| quoted(&word.to_string_lossy())).collect();
    listener(&words.join(" "));
}

/// A word in a shell's syntax, quoted if necessary.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@%+,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Path of one of our programs, in this program's own folder unless [`take_from`] has chosen
/// another.
pub fn program(name: &str) -> Result<PathBuf> {
    let elsewhere = ELSEWHERE.lock();
    let folder = match elsewhere.get(name) {
        Some(folder) => folder.clone(),
        None => programs_folder()?,
    };
    let path = folder.join(name);
    if !path.is_file() {
        bail!("{} is not built: run `make build` first", path.display());
    }
    Ok(path)
}

/// The folder that holds our programs: `target/debug` or `target/release`.
pub fn programs_folder() -> Result<PathBuf> {
    let this = std::env::current_exe().context("finding this program")?;
    let folder = this.parent().context("a program lies in a folder")?;
    // A test program lies in `deps/`, whose parent folder holds the programs.
    let folder = if folder.ends_with("deps") {
        folder.parent().context("deps/ lies in a folder")?
    } else {
        folder
    };
    Ok(folder.to_owned())
}

/// A child process; dropping it ends it.
#[derive(Debug)]
pub struct Running {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Running {
    /// Starts `command`; its output is appended to the file `log`.
    pub fn start(name: &str, mut command: Command, log: &Path) -> Result<Self> {
        let file = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| log.display().to_string())?;
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file);
        let child = command
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        Ok(Self {
            name: name.to_owned(),
            child,
            log: log.to_owned(),
        })
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The output so far.
    pub fn log(&self) -> String {
        std::fs::read(&self.log)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// Ends the process with SIGTERM, and with SIGKILL after `STOP_TIMEOUT`.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        self.signal(rustix::process::Signal::TERM);
        let end = Instant::now() + STOP_TIMEOUT;
        while Instant::now() < end {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        self.kill()
    }

    /// Kills the process with SIGKILL.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.signal(rustix::process::Signal::KILL);
        Ok(self.child.wait()?)
    }

    /// The exit status, if the process has ended by itself.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    fn signal(&mut self, signal: rustix::process::Signal) {
        if let (Ok(None), Some(pid)) = (
            self.child.try_wait(),
            rustix::process::Pid::from_raw(self.child.id() as i32),
        ) {
            // The process may have ended since the check; its id is not reused before `wait`.
            let _gone = rustix::process::kill_process(pid, signal);
        }
    }

    /// Waits until the log contains `text`, or the process ends.
    pub fn wait_for_log(&mut self, text: &str, within: Duration) -> Result<()> {
        let found = wait_until(within, || {
            if let Some(status) = self.child.try_wait()? {
                bail!(
                    "{} ended with {status} before its log contained {text:?}:\n{}",
                    self.name,
                    self.log()
                );
            }
            Ok(self.log().contains(text).then_some(()))
        });
        found.with_context(|| {
            format!(
                "the log of {} does not contain {text:?} in time:\n{}",
                self.name,
                self.log()
            )
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            // An error cannot be reported from a destructor.
            let _ended = self.stop();
        }
    }
}

/// Polls `probe` until it returns a value, for at most `within`.
pub fn wait_until<T>(within: Duration, mut probe: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let end = Instant::now() + within;
    loop {
        if let Some(found) = probe()? {
            return Ok(found);
        }
        if Instant::now() >= end {
            bail!(
                "the awaited condition did not hold within {} s",
                within.as_secs()
            );
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_for_a_shell() {
        let plain = [
            "deploy",
            "--project",
            "/tmp/a-b_c.d",
            "https://a:1%2",
            "a=b",
        ];
        assert!(plain.iter().all(|word| quoted(word) == *word));
        for word in [
            "",
            "a b",
            "*.demo.test",
            "#x",
            "$HOME",
            "it's",
            "a\nb",
            "(x)",
        ] {
            let script = format!("printf %s {}", quoted(word));
            let ran = Command::new("sh").arg("-c").arg(script).output().unwrap();
            assert_eq!(String::from_utf8(ran.stdout).unwrap(), word);
        }
    }
}
