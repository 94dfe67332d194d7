//! The home folder: who this machine is to one fleet. Keys, the connection and the memory of what
//! was seen.
//!
//! ```text
//! connection.json   where the control plane is, its pinned key, the token
//! memory.json       the statements and the highest versions ever seen: what refuses a rollback
//! root.key          operator: the fleet's root key
//! pools/NAME.N.key  operator: the private key of epoch N of a pool
//! audit.json        the last record of the audit chain that was verified: a later chain must contain it
//! joins.json        operator: join tokens given out, as public keys
//! nodes.json        operator: the nodes that were admitted, with the keys that they joined with
//! tenant.key        tenant: the key that signs manifests; tenant.pub is its public half
//! objects/          tenant: releases and sealed secrets that the newest manifest lists
//! bundles/          tenant: bundles of those releases that were deployed from this home
//! format.json       which format all this has; read first
//! ```
//! Every file is 0600 in folders of 0700, and replaced as a whole: a kill leaves the old one or the
//! new one.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use casemate_durable::PRIVATE;
use casemate_trust::format::{Format, MARK, Marking};
use casemate_trust::name::Name;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Code, Error};

/// The formats of a home folder. A change that earlier programs would misread gets a number of its
/// own, and a fixture.
const FORMAT: Format = Format {
    what: "this home folder",
    newest: 1,
};
/// Largest file that is read from the home folder, in bytes: far above a memory of thousands of
/// tenants.
const MAX_FILE_BYTES: u64 = 64 * 1024 * 1024;
/// How long the program waits for another `casemate` that uses the same home: most commands end
/// within that time.
const LOCK_WAIT: Duration = Duration::from_secs(15);
/// Pause between two tries for the lock.
const LOCK_RETRY: Duration = Duration::from_millis(50);

/// A home folder: keys, memory and connection of one operator or tenant. Opened once by the program
/// and lent to the command; whoever writes holds a [`Lock`].
#[derive(Debug, Clone)]
pub struct Home {
    path: PathBuf,
}

/// Held while files of the home folder are changed; the lock is released when this is dropped.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Home {
    /// The folder given with `--home`, else `casemate` in the user's configuration folder (XDG).
    ///
    /// # Errors
    /// Neither `XDG_CONFIG_HOME` nor `HOME` is set.
    pub fn locate(given: Option<PathBuf>) -> Result<Self, Error> {
        Self::of_profile(given, None)
    }

    /// Like [`Home::locate`], with `casemate-PROFILE` in place of `casemate`.
    ///
    /// # Errors
    /// See [`Home::locate`].
    pub fn of_profile(given: Option<PathBuf>, profile: Option<&Name>) -> Result<Self, Error> {
        if let Some(path) = given {
            return Ok(Self { path });
        }
        let absolute = |name: &str| {
            std::env::var_os(name)
                .map(PathBuf::from)
                .filter(|path| path.is_absolute())
        };
        let config = absolute("XDG_CONFIG_HOME")
            .or_else(|| absolute("HOME").map(|home| home.join(".config")));
        config
            .map(|config| Self {
                path: config.join(profile.map_or("casemate".to_owned(), |profile| {
                    format!("casemate-{profile}")
                })),
            })
            .ok_or_else(|| {
                Error::new(
                    Code::Usage,
                    "no home folder is known: neither HOME nor XDG_CONFIG_HOME is set",
                    "give one with `--home DIR`",
                )
            })
    }

    /// The path of the folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path of a file in the folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Refuse the home of a newer `casemate`, before anything in it is read or changed.
    ///
    /// # Errors
    /// A newer program has written it, or its format file cannot be read.
    pub fn must_be_readable(&self) -> Result<(), Error> {
        match self.marking()? {
            Marking::Needed => self.mark(),
            Marking::Done | Marking::Wanted => Ok(()),
        }
    }

    fn marking(&self) -> Result<Marking, Error> {
        let path = self.file(MARK);
        let checked = FORMAT.check(read_private(&path)?.as_deref());
        checked.map_err(|error| {
            Error::new(
                Code::Newer,
                "this home folder is not opened",
                "install the newer casemate on this machine, or give another home with \
                 `--home DIR`; an older casemate would forget what it does not know, and with that \
                 what refuses a rollback",
            )
            .at(path.display())
            .source(error)
        })
    }

    fn mark(&self) -> Result<(), Error> {
        write_private(&self.file(MARK), &FORMAT.mark())
    }

    /// Keep other `casemate` programs out of this home until the lock is dropped.
    ///
    /// # Errors
    /// Another program holds the lock for too long, or the folder cannot be made.
    pub fn lock(&self) -> Result<Lock, Error> {
        self.lock_within(LOCK_WAIT)
    }

    fn lock_within(&self, wait: Duration) -> Result<Lock, Error> {
        make_folder(&self.path)?;
        let path = self.file("lock");
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(|error| cannot_write(&path, error))?;
        let until = Instant::now() + wait;
        loop {
            match file.try_lock() {
                Ok(()) => {
                    match self.marking()? {
                        Marking::Done => {}
                        Marking::Needed => self.mark()?,
                        // A command that only reads works on a full disk too; the next lock tries
                        // again.
                        Marking::Wanted => drop(self.mark()),
                    }
                    return Ok(Lock { _file: file });
                }
                Err(TryLockError::WouldBlock) if Instant::now() < until => {
                    std::thread::sleep(LOCK_RETRY);
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(Error::new(
                        Code::Busy,
                        "another casemate is working with this home folder",
                        "wait until it has ended and run the command again",
                    )
                    .at(self.path.display()));
                }
                Err(TryLockError::Error(error)) => return Err(cannot_write(&path, error)),
            }
        }
    }

    /// Read a JSON file of this program; `None` if it does not exist.
    ///
    /// # Errors
    /// The file cannot be read, other users may read it, or its content is not of this program.
    pub fn read_json<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, Error> {
        let path = self.file(name);
        let Some(bytes) = read_private(&path)? else {
            return Ok(None);
        };
        serde_json::from_slice(&bytes).map(Some).map_err(|error| {
            Error::new(
                Code::Io,
                "a file of the home folder is damaged",
                "restore it from a backup; nothing was changed",
            )
            .at(path.display())
            .source(error)
        })
    }

    /// Write a JSON file of this program.
    ///
    /// # Errors
    /// The file cannot be written; the old one is unchanged.
    pub fn write_json(&self, name: &str, value: &impl Serialize) -> Result<(), Error> {
        let mut text = serde_json::to_vec_pretty(value)
            .map_err(|error| Error::internal(format!("{name} has no JSON")).source(error))?;
        text.push(b'\n');
        write_private(&self.file(name), &text)
    }
}

/// Read a file that only its owner may read; `None` if it does not exist.
///
/// # Errors
/// The file cannot be read, is too large, or its mode lets others read it.
pub fn read_private(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(cannot_read(path, error)),
    };
    let mode = file
        .metadata()
        .map_err(|error| cannot_read(path, error))?
        .permissions()
        .mode();
    if mode & 0o077 != 0 {
        return Err(Error::new(
            Code::Io,
            format!(
                "others may read or change this file (mode {:04o})",
                mode & 0o7777
            ),
            format!("make it yours alone: chmod 600 {}", path.display()),
        )
        .at(path.display()));
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| cannot_read(path, error))?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(Error::new(
            Code::Io,
            "the file is over 64 MiB",
            "restore it from a backup",
        )
        .at(path.display()));
    }
    Ok(Some(bytes))
}

/// Replace a file as a whole, readable for its owner alone, and have it on the disk before
/// returning.
///
/// # Errors
/// The folder or file cannot be written; the old file is unchanged.
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let folder = path
        .parent()
        .ok_or_else(|| Error::internal("a file without a folder"))?;
    make_folder(folder)?;
    casemate_durable::replace(path, PRIVATE, bytes).map_err(|error| cannot_write(path, error))
}

fn make_folder(path: &Path) -> Result<(), Error> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|error| cannot_write(path, error))
}

fn cannot_read(path: &Path, error: std::io::Error) -> Error {
    Error::new(
        Code::Io,
        "cannot read a file",
        "check that it is a file and that you may read it",
    )
    .at(path.display())
    .source(error)
}

/// The error for a file that cannot be written, with advice for the usual causes.
pub fn cannot_write(path: &Path, error: std::io::Error) -> Error {
    let next = match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            "free some space on the disk; nothing was lost"
        }
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            "use a folder that you may write to, or another home with `--home DIR`"
        }
        _ => "check the folder and the disk; nothing was lost",
    };
    Error::new(Code::CannotCreate, "cannot write a file", next)
        .at(path.display())
        .source(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn home() -> (tempfile::TempDir, Home) {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::locate(Some(dir.path().join("home"))).unwrap();
        (dir, home)
    }

    #[test]
    fn files_are_for_their_owner_alone_and_leave_nothing_beside_them() {
        let (_dir, home) = home();
        home.write_json("connection.json", &"one").unwrap();
        home.write_json("connection.json", &"two").unwrap();
        assert_eq!(
            home.read_json::<String>("connection.json")
                .unwrap()
                .as_deref(),
            Some("two")
        );
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&home.file("connection.json")), 0o600);
        assert_eq!(mode(home.path()), 0o700);
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_that_others_may_read_is_refused() {
        let (_dir, home) = home();
        home.write_json("connection.json", &"token").unwrap();
        fs::set_permissions(
            home.file("connection.json"),
            fs::Permissions::from_mode(0o644),
        )
        .unwrap();
        let error = home.read_json::<String>("connection.json").unwrap_err();
        assert!(error.to_text().contains("chmod 600"), "{}", error.to_text());
    }

    #[test]
    fn the_second_of_two_programs_asks_its_user_to_wait() {
        let (_dir, home) = home();
        let held = home.lock().unwrap();
        let waited = home.lock_within(LOCK_RETRY);
        assert_eq!(waited.unwrap_err().code(), Code::Busy);
        drop(held);
        home.lock().unwrap();
    }

    #[test]
    fn a_folder_that_cannot_be_written_leaves_the_old_file() {
        let (_dir, home) = home();
        home.write_json("memory.json", &1).unwrap();
        let blocked = home.file("memory.json").join("below-a-file");
        assert_eq!(
            write_private(&blocked, b"x").unwrap_err().code(),
            Code::CannotCreate
        );
        assert_eq!(home.read_json::<u32>("memory.json").unwrap(), Some(1));
    }
}
