//! Descriptors that one program passes to the next in the same process: taken at our start, given
//! at an upgrade in place. The convention is that of sd_listen_fds(3), which service managers use
//! too: they are numbered from 3 on, `LISTEN_FDS` holds their number, and `LISTEN_PID` the process
//! that they are for.

#![allow(
    unsafe_code,
    reason = "descriptors by number, and an exec with signals blocked"
)]

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use casemate_sandbox::launch::SOCKETS_MAX;
use rustix::fs::Access;

use crate::child::FIRST_OTHER;
use crate::start::PROGRAMS;

const COUNT: &str = "LISTEN_FDS";
const PROCESS: &str = "LISTEN_PID";
/// Names of the descriptors, which launch ignores: a socket is identified by the kernel's answer
/// for its address.
const NAMES: &str = "LISTEN_FDNAMES";

/// The running program: its path may lead to another file by now.
const RUNNING: &str = "/proc/self/exe";

/// The suffix that the kernel adds to the path of a running program whose file was removed, as by
/// an installation.
const GONE: &str = " (deleted)";

/// Number of descriptors that were passed to this process; a number above the maximum cannot come
/// from launch.
pub(crate) fn passed() -> u32 {
    count(
        std::process::id(),
        std::env::var_os(PROCESS).as_deref(),
        std::env::var_os(COUNT).as_deref(),
    )
}

fn count(own: u32, process: Option<&OsStr>, count: Option<&OsStr>) -> u32 {
    let number = |text: Option<&OsStr>| text.and_then(OsStr::to_str)?.parse::<u32>().ok();
    match (number(process), number(count)) {
        (Some(process), Some(count)) if process == own && count as usize <= SOCKETS_MAX => count,
        _ => 0,
    }
}

/// Takes the passed descriptors, without those that are not open. Call it once, before this process
/// opens any.
pub(crate) fn take(count: u32) -> Vec<OwnedFd> {
    let numbers = FIRST_OTHER..FIRST_OTHER + count;
    let take_one = |number: u32| {
        let number = RawFd::try_from(number).ok()?;
        // SAFETY: takes numbers and touches no memory. It fails for a number that is not open.
        if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } == -1 {
            return None;
        }
        // SAFETY: the number is open, as the call before has shown, and this process does not own
        // it yet: it was open when the process began, and this is called once, before anything is
        // opened.
        Some(unsafe { OwnedFd::from_raw_fd(number) })
    };
    numbers.filter_map(take_one).collect()
}

/// The program that launch executes in an upgrade in place: the file that is then at this one's
/// path.
#[derive(Debug, Clone)]
pub(crate) struct Successor {
    program: PathBuf,
    folder: PathBuf,
}

/// Why an upgrade does not begin.
#[derive(Debug, thiserror::Error)]
#[error("{path} cannot be executed; install the programs, then ask again")]
pub(crate) struct NoSuccessor {
    path: PathBuf,
    source: io::Error,
}

impl Successor {
    /// Determined at our start; `folder` holds the other programs.
    pub(crate) fn find(folder: &Path) -> io::Result<Self> {
        Ok(Self {
            program: program(std::env::args_os().next(), std::env::current_exe)?,
            folder: folder.to_owned(),
        })
    }

    /// Its path.
    pub(crate) fn program(&self) -> &Path {
        &self.program
    }

    /// Checks that every program of the node is there, while the running ones can still continue.
    pub(crate) fn check(&self) -> Result<(), NoSuccessor> {
        let others = PROGRAMS.iter().map(|name| self.folder.join(name));
        for path in std::iter::once(self.program.clone()).chain(others) {
            let executable = rustix::fs::access(&path, Access::EXEC_OK);
            let is_file = path.is_file();
            let checked = match executable {
                Ok(()) if is_file => Ok(()),
                Ok(()) => Err(io::ErrorKind::InvalidInput.into()),
                Err(error) => Err(error.into()),
            };
            checked.map_err(|source| NoSuccessor { path, source })?;
        }
        Ok(())
    }

    /// Executes the program, with our arguments and environment and these sockets. If that fails,
    /// executes the present program again. Returns only when both fail.
    pub(crate) fn become_it(&self, sockets: Vec<OwnedFd>) -> io::Error {
        let count = match place(sockets) {
            Ok(count) => count,
            Err(error) => return error,
        };
        let program = self.program.as_os_str();
        let error = execute(program, count);
        tracing::error!(
            %error,
            program = %self.program.display(),
            "cannot execute the new program; continuing with the earlier one"
        );
        execute(OsStr::new(RUNNING), count)
    }
}

/// The path with which we were started, if it is absolute: it may lead to another file by now, such
/// as a link to the newest version. Otherwise the path of the running file.
fn program(
    started_as: Option<OsString>,
    running: impl FnOnce() -> io::Result<PathBuf>,
) -> io::Result<PathBuf> {
    let started_as = started_as.map(PathBuf::from);
    if let Some(path) = started_as.filter(|path| path.is_absolute()) {
        return Ok(path);
    }
    let running = running()?;
    let path = running.as_os_str().as_bytes();
    let path = path.strip_suffix(GONE.as_bytes()).unwrap_or(path);
    Ok(PathBuf::from(OsStr::from_bytes(path)))
}

/// Moves the sockets to the numbers where the next program looks for them, open across the exec.
/// Returns their number.
fn place(sockets: Vec<OwnedFd>) -> io::Result<u32> {
    let count = u32::try_from(sockets.len()).map_err(io::Error::other)?;
    let free = RawFd::try_from(FIRST_OTHER + count).map_err(io::Error::other)?;
    // First all sockets are moved away, then each to its number.
    let moved = sockets
        .iter()
        .map(|socket| rustix::io::fcntl_dupfd_cloexec(socket, free));
    let moved: Vec<OwnedFd> = moved.collect::<Result<_, _>>()?;
    drop(sockets);
    for (socket, number) in moved.iter().zip(FIRST_OTHER..) {
        let number = RawFd::try_from(number).map_err(io::Error::other)?;
        // SAFETY: takes two numbers and touches no memory. The second one is below all of `moved`
        // and has no owner: the server and everything that it had open are gone, and the sockets
        // were closed above.
        if unsafe { libc::dup2(socket.as_raw_fd(), number) } == -1 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(count)
}

/// Does not use `std::process::Command`, which unblocks signals before the exec: a pending signal
/// would then end us instead of waiting for the next program.
fn execute(program: &OsStr, sockets: u32) -> io::Error {
    let strings = |all: Vec<OsString>| -> io::Result<Vec<CString>> {
        let all = all.into_iter().map(|text| CString::new(text.as_bytes()));
        Ok(all.collect::<Result<_, _>>()?)
    };
    let prepared = strings(vec![program.to_owned()]).and_then(|program| {
        let arguments = strings(std::env::args_os().collect())?;
        let environment = strings(environment(std::env::vars_os(), sockets))?;
        Ok((program, arguments, environment))
    });
    let (program, arguments, environment) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => return error,
    };
    let pointers = |strings: &[CString]| {
        let all = strings.iter().map(|string| string.as_ptr());
        all.chain([std::ptr::null()]).collect::<Vec<_>>()
    };
    let (argv, envp) = (pointers(&arguments), pointers(&environment));
    // SAFETY: the path is a C string, and both lists end with a null pointer and point at C
    // strings; all of them live until the call returns. On success this memory is gone; on failure
    // the kernel has only read it.
    unsafe { libc::execve(program[0].as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    io::Error::last_os_error()
}

/// Our environment, with the variables for the next program's sockets in place of those for ours.
fn environment(own: impl Iterator<Item = (OsString, OsString)>, sockets: u32) -> Vec<OsString> {
    let pair = |name: &OsStr, value: &OsStr| {
        let mut pair = name.to_owned();
        pair.push("=");
        pair.push(value);
        pair
    };
    let kept = own.filter(|(name, _)| ![PROCESS, COUNT, NAMES].iter().any(|ours| name == ours));
    let mut all: Vec<_> = kept.map(|(name, value)| pair(&name, &value)).collect();
    let numbers = [(PROCESS, std::process::id()), (COUNT, sockets)];
    all.extend(numbers.map(|(name, number)| pair(name.as_ref(), number.to_string().as_ref())));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_descriptors_for_this_process_up_to_the_maximum_are_taken() {
        let of = |process: &str, number: &str| {
            count(7, Some(OsStr::new(process)), Some(OsStr::new(number)))
        };
        assert_eq!(of("7", "2"), 2);
        assert_eq!(of("7", &SOCKETS_MAX.to_string()), SOCKETS_MAX as u32);
        for (process, number) in [
            ("8", "2"),
            ("7", "-1"),
            ("7", ""),
            ("", "2"),
            ("7", "4294967296"),
        ] {
            assert_eq!(of(process, number), 0, "{process} {number}");
        }
        assert_eq!(of("7", &(SOCKETS_MAX + 1).to_string()), 0);
        assert_eq!(count(7, None, Some(OsStr::new("2"))), 0);
    }

    #[test]
    fn the_next_program_gets_our_environment_and_its_own_descriptors() {
        let own = [
            ("CASEMATE_LOG", "debug"),
            ("LISTEN_FDS", "9"),
            ("LISTEN_PID", "1"),
            ("LISTEN_FDNAMES", "a:b"),
        ];
        let own = own.map(|(name, value)| (name.into(), value.into()));
        let expected = [
            "CASEMATE_LOG=debug".to_owned(),
            format!("LISTEN_PID={}", std::process::id()),
            "LISTEN_FDS=3".to_owned(),
        ];
        let expected = expected.map(OsString::from);
        assert_eq!(environment(own.into_iter(), 3), expected);
    }

    #[test]
    fn the_next_program_is_the_file_at_the_path_of_the_start() {
        let running = |path: &str| {
            let path = PathBuf::from(path);
            move || Ok(path)
        };
        let cases = [
            (
                Some("/opt/newest/launch"),
                "/opt/1/launch",
                "/opt/newest/launch",
            ),
            (Some("launch"), "/opt/1/launch", "/opt/1/launch"),
            (Some("launch"), "/opt/1/launch (deleted)", "/opt/1/launch"),
            (None, "/opt/1/launch", "/opt/1/launch"),
        ];
        for (started_as, file, expected) in cases {
            let found = program(started_as.map(OsString::from), running(file)).unwrap();
            assert_eq!(found, Path::new(expected));
        }
    }

    #[test]
    fn an_upgrade_without_a_program_does_not_begin() {
        let folder = tempfile::tempdir().unwrap();
        let successor = Successor::find(folder.path()).unwrap();
        let error = successor.check().unwrap_err();
        assert_eq!(error.path, folder.path().join(PROGRAMS[0]));
        for name in PROGRAMS {
            std::os::unix::fs::symlink(successor.program(), folder.path().join(name)).unwrap();
        }
        successor.check().unwrap();
    }
}
