//! Key files of the home folder and the passphrases that open them.

use std::cell::RefCell;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};

use casemate_trust::key::{PublicKey, SEED_BYTES, SigningKey};
use casemate_trust::keyfile::{self, KeyFileError, Purpose};
use casemate_trust::name::Name;
use zeroize::Zeroizing;

use crate::error::{Code, Error};
use crate::home::{Home, read_private, write_private};
use crate::machine::random;

/// File of the fleet's root key.
pub const ROOT: &str = "root.key";
/// File of the tenant's key.
pub const TENANT: &str = "tenant.key";
/// File of the tenant's public key, which can be shown without a passphrase.
pub const TENANT_PUBLIC: &str = "tenant.pub";
/// File of the key that a tenant's manifest names for statements of freshness.
pub const FRESHNESS: &str = "freshness.key";
/// File of its public key.
pub const FRESHNESS_PUBLIC: &str = "freshness.pub";
/// Shortest new passphrase, characters: below that Argon2id does not help.
const MIN_PASSPHRASE_CHARS: usize = 8;

/// File of the private key of a pool's epoch.
pub fn pool_file(pool: &Name, epoch: u64) -> String {
    format!("pools/{pool}.{epoch}.key")
}

type Secret = Zeroizing<Vec<u8>>;

/// The sources of passphrases: a file, the environment, else the terminal.
#[derive(Default)]
pub struct Passphrases {
    file: Option<PathBuf>,
    environment: Option<Secret>,
    /// The passphrase that was typed last: the root and pool keys of an operator usually have the
    /// same.
    asked: RefCell<Option<Secret>>,
}

impl Passphrases {
    /// With the file of `--passphrase-file`, and the environment's `CASEMATE_PASSPHRASE`.
    pub fn new(file: Option<PathBuf>) -> Self {
        let environment = std::env::var("CASEMATE_PASSPHRASE").ok();
        Self {
            file,
            environment: environment.map(|text| Zeroizing::new(text.into_bytes())),
            asked: RefCell::new(None),
        }
    }

    fn given(&self) -> Result<Option<Secret>, Error> {
        let Some(path) = &self.file else {
            return Ok(self.environment.clone());
        };
        let text = Zeroizing::new(std::fs::read(path).map_err(|error| {
            Error::new(
                Code::Input,
                "cannot read the passphrase file",
                "check the path and the file's permissions",
            )
            .at(path.display())
            .source(error)
        })?);
        let line = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
        Ok(Some(Zeroizing::new(
            line.strip_suffix(b"\r").unwrap_or(line).to_vec(),
        )))
    }

    /// The passphrase of an existing key.
    fn known(&self, key: &Path) -> Result<Secret, Error> {
        if let Some(given) = self.given()? {
            return Ok(given);
        }
        if let Some(asked) = self.asked.borrow().clone() {
            return Ok(asked);
        }
        let passphrase = ask(&format!("Passphrase of {}: ", key.display()))?;
        *self.asked.borrow_mut() = Some(passphrase.clone());
        Ok(passphrase)
    }

    /// The passphrase of a new key, typed twice.
    ///
    /// # Errors
    /// None is given and there is no terminal, or it is too short.
    pub fn choose(&self, key: &str) -> Result<Secret, Error> {
        let passphrase = match self.given()? {
            Some(given) => given,
            None => {
                let first = ask(&format!("New passphrase for the {key}: "))?;
                if ask("The same again: ")? != first {
                    return Err(Error::new(
                        Code::Passphrase,
                        "the two passphrases differ",
                        "run the command again",
                    ));
                }
                first
            }
        };
        let chars = String::from_utf8_lossy(&passphrase).chars().count();
        if chars < MIN_PASSPHRASE_CHARS {
            return Err(Error::new(
                Code::Passphrase,
                format!("a passphrase has at least {MIN_PASSPHRASE_CHARS} characters"),
                "choose a longer one, or leave the key unencrypted with `--plain-keys`",
            ));
        }
        *self.asked.borrow_mut() = Some(passphrase.clone());
        Ok(passphrase)
    }
}

impl std::fmt::Debug for Passphrases {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        to.write_str("Passphrases")
    }
}

fn ask(prompt: &str) -> Result<Secret, Error> {
    let nobody = || {
        Error::new(
            Code::Passphrase,
            "a passphrase is needed and there is no terminal to ask on",
            "give it with `--passphrase-file FILE` or in CASEMATE_PASSPHRASE",
        )
    };
    if !std::io::stdin().is_terminal() {
        return Err(nobody());
    }
    let typed = rpassword::prompt_password(prompt).map_err(|error| nobody().source(error))?;
    Ok(Zeroizing::new(typed.into_bytes()))
}

/// How a new key file is protected.
#[derive(Clone)]
pub enum Protection {
    /// Only by the mode of its file.
    Plain,
    /// The key is encrypted with a passphrase.
    Passphrase(Secret),
}

/// The key files of a home folder.
#[derive(Debug, Clone, Copy)]
pub struct Keys<'a> {
    home: &'a Home,
    passphrases: &'a Passphrases,
}

impl<'a> Keys<'a> {
    /// The key files of `home`.
    pub fn new(home: &'a Home, passphrases: &'a Passphrases) -> Self {
        Self { home, passphrases }
    }

    /// Whether a key file exists.
    pub fn has(&self, file: &str) -> bool {
        self.home.file(file).exists()
    }

    /// How a new key is to be protected.
    ///
    /// # Errors
    /// No passphrase is given, and there is no terminal.
    pub fn protection(&self, plain: bool, what: &str) -> Result<Protection, Error> {
        if plain {
            return Ok(Protection::Plain);
        }
        self.passphrases.choose(what).map(Protection::Passphrase)
    }

    /// The protection of an existing key file, for files that belong to it.
    ///
    /// # Errors
    /// There is no such file, or its passphrase is wrong.
    pub fn same_protection(&self, file: &str, purpose: Purpose) -> Result<Protection, Error> {
        let (text, path) = self.text(file)?;
        if !keyfile::is_encrypted(&text).map_err(|error| damaged(&path, error))? {
            return Ok(Protection::Plain);
        }
        self.seed(file, purpose)?;
        self.passphrases.known(&path).map(Protection::Passphrase)
    }

    /// Write a new key file; an existing one is never replaced.
    ///
    /// # Errors
    /// The file exists already, or cannot be written.
    pub fn create(
        &self,
        file: &str,
        purpose: Purpose,
        seed: &[u8; SEED_BYTES],
        protection: &Protection,
    ) -> Result<(), Error> {
        let path = self.home.file(file);
        if path.exists() {
            return Err(Error::new(
                Code::Exists,
                "a key file of that name exists already",
                "keep it; to start again use another home with `--home DIR`",
            )
            .at(path.display()));
        }
        let passphrase = match protection {
            Protection::Plain => None,
            Protection::Passphrase(passphrase) => Some(passphrase.as_slice()),
        };
        let text = keyfile::write(purpose, seed, passphrase, &mut random)
            .map_err(|error| Error::internal("the key cannot be written").source(error))?;
        write_private(&path, text.as_bytes())
    }

    fn text(&self, file: &str) -> Result<(Zeroizing<String>, PathBuf), Error> {
        let path = self.home.file(file);
        let bytes = read_private(&path)?.ok_or_else(|| missing(file).at(path.display()))?;
        let text = String::from_utf8(bytes).map_err(|error| {
            damaged(&path, KeyFileError::Format("not text".into())).source(error.utf8_error())
        })?;
        Ok((Zeroizing::new(text), path))
    }

    /// Whether a key file is protected by a passphrase.
    ///
    /// # Errors
    /// There is no such file, others may read it, or it is damaged.
    pub fn is_encrypted(&self, file: &str) -> Result<bool, Error> {
        let (text, path) = self.text(file)?;
        keyfile::is_encrypted(&text).map_err(|error| damaged(&path, error))
    }

    /// The seed in a key file.
    ///
    /// # Errors
    /// There is no such file, it holds a key for another purpose, or the passphrase is wrong.
    pub fn seed(&self, file: &str, purpose: Purpose) -> Result<Zeroizing<[u8; SEED_BYTES]>, Error> {
        let (text, path) = self.text(file)?;
        let encrypted = keyfile::is_encrypted(&text).map_err(|error| damaged(&path, error))?;
        let passphrase = if encrypted {
            Some(self.passphrases.known(&path)?)
        } else {
            None
        };
        keyfile::read(
            &text,
            purpose,
            passphrase.as_ref().map(|bytes| bytes.as_slice()),
        )
        .map_err(|error| damaged(&path, error))
    }

    /// The Ed25519 key in a key file.
    ///
    /// # Errors
    /// See [`Keys::seed`].
    pub fn signing(&self, file: &str, purpose: Purpose) -> Result<SigningKey, Error> {
        let seed = self.seed(file, purpose)?;
        SigningKey::from_seed(&seed)
            .map_err(|error| Error::internal("the key file's seed makes no key").source(error))
    }

    /// The key that is to replace another, with the same protection: made now, or earlier by a
    /// command that was interrupted. It lies beside the other until [`Keys::promote_key`].
    ///
    /// # Errors
    /// There is no key to be replaced, or no file can be written.
    pub fn next(&self, (file, purpose): (&str, Purpose)) -> Result<SigningKey, Error> {
        let next = next_file(file);
        if !self.has(&next) {
            let protection = self.same_protection(file, purpose)?;
            let key = SigningKey::generate(&mut random)
                .map_err(|error| Error::internal("no key could be made").source(error))?;
            self.create(&next, purpose, key.expose_secret(), &protection)?;
        }
        self.signing(&next, purpose)
    }

    /// Whether a key waits to replace another because a command was interrupted.
    pub fn has_next(&self, file: &str) -> bool {
        self.has(&next_file(file))
    }

    /// Put the next key in its place, and keep the earlier one; returns the earlier key's path.
    ///
    /// # Errors
    /// The files cannot be renamed.
    pub fn promote_key(&self, file: &str) -> Result<PathBuf, Error> {
        let (place, next) = (self.home.file(file), self.home.file(&next_file(file)));
        let free = (1..).map(|number| self.home.file(&format!("{file}.earlier-{number}")));
        let kept = free.into_iter().find(|path| !path.exists());
        let kept = kept.ok_or_else(|| Error::internal("no more names for earlier keys"))?;
        // The file is linked and not moved: a key exists under the usual name at every moment.
        let moved = std::fs::hard_link(&place, &kept).and_then(|()| std::fs::rename(&next, &place));
        moved.map_err(|error| crate::home::cannot_write(&place, error))?;
        Ok(kept)
    }

    /// Like [`Keys::promote_key`], for a key whose public half has a file too.
    ///
    /// # Errors
    /// The files cannot be written.
    pub fn promote(
        &self,
        (file, public_file): (&str, &str),
        public: &PublicKey,
    ) -> Result<PathBuf, Error> {
        let kept = self.promote_key(file)?;
        self.home.write_json(public_file, public)?;
        Ok(kept)
    }

    /// The public key of this home's tenant, if it has one.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn tenant_public(&self) -> Result<Option<PublicKey>, Error> {
        self.home.read_json(TENANT_PUBLIC)
    }

    /// Make an Ed25519 key with a file for its public half, or find the existing one; returns
    /// whether it is new.
    ///
    /// # Errors
    /// A file cannot be read or written, or no passphrase is given.
    pub fn find_or_make(
        &self,
        (file, public_file): (&str, &str),
        purpose: Purpose,
        plain: bool,
        what: &str,
    ) -> Result<(PublicKey, bool), Error> {
        let public = self.home.read_json(public_file)?;
        if let Some(public) = public.filter(|_| self.has(file)) {
            return Ok((public, false));
        }
        let is_new = !self.has(file);
        let public = if is_new {
            let protection = self.protection(plain, what)?;
            let key = SigningKey::generate(&mut random)
                .map_err(|error| Error::internal("no key could be made").source(error))?;
            self.create(file, purpose, key.expose_secret(), &protection)?;
            key.public()
        } else {
            self.signing(file, purpose)?.public()
        };
        self.home.write_json(public_file, &public)?;
        Ok((public, is_new))
    }
}

fn next_file(file: &str) -> String {
    format!("{file}.next")
}

/// A tenant's key that is kept outside of the home folder, for thresholds that need several keys.
///
/// # Errors
/// See [`Keys::seed`].
pub fn tenant_key_at(path: &Path, passphrases: &Passphrases) -> Result<SigningKey, Error> {
    let (Some(folder), Some(name)) = (
        path.parent(),
        path.file_name().and_then(|name| name.to_str()),
    ) else {
        return Err(
            Error::new(Code::Input, "expected a key file", "check the path").at(path.display()),
        );
    };
    let home = Home::locate(Some(folder.to_owned()))?;
    Keys::new(&home, passphrases).signing(name, Purpose::Tenant)
}

fn missing(file: &str) -> Error {
    let (what, next) = match file {
        ROOT => (
            "the fleet's root key is not in this home",
            "run this where `casemate fleet init` was run, or name that home with `--home DIR`",
        ),
        TENANT => (
            "there is no tenant key in this home",
            "make one with `casemate tenant key` and give its public key to the operator",
        ),
        FRESHNESS => (
            "there is no freshness key in this home",
            "make one with `casemate freshness key`",
        ),
        _ => (
            "a key is not in this home",
            "run this where the key was made, or name that home with `--home DIR`",
        ),
    };
    Error::new(Code::NoKey, what, next)
}

fn damaged(path: &Path, error: KeyFileError) -> Error {
    let (code, next) = match error {
        KeyFileError::PassphraseWrong | KeyFileError::PassphraseNeeded => (
            Code::Passphrase,
            "run the command again with the right passphrase",
        ),
        _ => (Code::Io, "restore the key file from a backup"),
    };
    Error::new(code, "the key file cannot be opened", next)
        .at(path.display())
        .source(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passphrases(text: &str) -> Passphrases {
        Passphrases {
            environment: Some(Zeroizing::new(text.into())),
            ..Passphrases::default()
        }
    }

    #[test]
    fn a_key_comes_back_with_its_passphrase_only_and_is_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::locate(Some(dir.path().to_owned())).unwrap();
        let right = passphrases("correct horse");
        let keys = Keys::new(&home, &right);
        let protection = keys.protection(false, "root key").unwrap();
        keys.create(ROOT, Purpose::FleetRoot, &[7; 32], &protection)
            .unwrap();
        assert_eq!(*keys.seed(ROOT, Purpose::FleetRoot).unwrap(), [7; 32]);
        let again = keys.create(ROOT, Purpose::FleetRoot, &[8; 32], &Protection::Plain);
        assert_eq!(again.unwrap_err().code(), Code::Exists);
        let wrong = passphrases("wrong horse");
        let error = Keys::new(&home, &wrong).seed(ROOT, Purpose::FleetRoot);
        assert_eq!(error.unwrap_err().code(), Code::Passphrase);
        let other = keys.seed(ROOT, Purpose::Tenant).unwrap_err();
        assert_eq!(other.code(), Code::Io);
        assert_eq!(
            keys.seed(TENANT, Purpose::Tenant).unwrap_err().code(),
            Code::NoKey
        );
    }

    #[test]
    fn a_short_passphrase_is_refused_without_showing_it() {
        let error = passphrases("hunter2").choose("root key").unwrap_err();
        assert!(!error.to_text().contains("hunter2"));
        assert_eq!(error.code(), Code::Passphrase);
    }

    #[test]
    fn the_first_line_of_a_file_is_the_passphrase() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p");
        std::fs::write(&path, "correct horse\r\nmore\n").unwrap();
        let from_file = Passphrases::new(Some(path));
        assert_eq!(
            from_file.known(Path::new("k")).unwrap().as_slice(),
            b"correct horse"
        );
    }
}
