//! From a profile to the exact files that an image is made of.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};

use crate::debian::{Source, depends_on_kernel};
use crate::{Error, Profile};

/// The package with the stub that makes one bootable file of kernel and initramfs.
const STUB: &str = "systemd-boot-efi";

/// Our programs, and where they stand in an image. Launch looks for the others beside itself.
const PROGRAMS: &[(&str, &str)] = &[
    ("casemate-init", "init"),
    ("casemate-launch", "usr/lib/casemate/casemate-launch"),
    ("casemate-node", "usr/lib/casemate/casemate-node"),
    ("casemate-vault", "usr/lib/casemate/casemate-vault"),
    ("casemate-gateway", "usr/lib/casemate/casemate-gateway"),
    ("casemate-worker", "usr/lib/casemate/casemate-worker"),
];

/// A Debian package, exactly.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PackageFile {
    /// Name.
    pub name: String,
    /// Version.
    pub version: String,
    /// Name of its file.
    pub file: String,
    /// SHA-256 of that, in hexadecimal.
    pub sha256: String,
}

impl PackageFile {
    pub(crate) fn check(&self, bytes: &[u8]) -> Result<(), Error> {
        check(&self.file, &self.sha256, bytes)
    }
}

/// A program of ours, exactly.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// Its name.
    pub name: String,
    /// SHA-256 of it, in hexadecimal.
    pub sha256: String,
    /// Where it stands in the image.
    pub path: String,
}

/// The folder with our programs, as Cargo builds them.
#[derive(Debug, Clone)]
pub struct Programs {
    folder: PathBuf,
}

impl Programs {
    /// Those in a folder.
    pub fn in_folder(folder: impl Into<PathBuf>) -> Self {
        Self {
            folder: folder.into(),
        }
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, Error> {
        let path = self.folder.join(name);
        fs::read(&path).map_err(|source| Error::Program { path, source })
    }

    pub(crate) fn get(&self, file: &File) -> Result<Vec<u8>, Error> {
        let bytes = self.read(&file.name)?;
        check(&file.name, &file.sha256, &bytes)?;
        Ok(bytes)
    }
}

/// Everything that goes into an image, by digest: the same plan gives the same bytes, or an error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Name of the profile.
    pub profile: String,
    /// Version of the image.
    pub version: String,
    /// Unix time, seconds: of every file in it, and the earliest that a node's clock may say.
    pub time: u32,
    /// The kernel's package.
    pub kernel: PackageFile,
    /// The boot stub's package.
    pub stub: PackageFile,
    /// The other packages, by name.
    pub packages: BTreeMap<String, PackageFile>,
    /// Our programs.
    pub programs: Vec<File>,
}

impl Plan {
    /// The newest of everything that a profile asks for.
    ///
    /// # Errors
    /// A package is not to be had, or a program is not built.
    pub fn make(
        profile: &Profile,
        version: &str,
        time: u32,
        programs: &Programs,
        packages: &mut dyn Source,
    ) -> Result<Self, Error> {
        let named = packages.find(&profile.kernel)?;
        let kernel = depends_on_kernel(&packages.get(&named)?, &named.file)?;
        let mut others = BTreeMap::new();
        for name in profile.packages() {
            others.insert(name.to_owned(), packages.find(name)?);
        }
        let file = |(name, path): &(&str, &str)| {
            Ok(File {
                name: (*name).to_owned(),
                sha256: sha256(&programs.read(name)?),
                path: (*path).to_owned(),
            })
        };
        Ok(Self {
            profile: profile.name.clone(),
            version: version.to_owned(),
            time,
            kernel: packages.find(&kernel)?,
            stub: packages.find(STUB)?,
            packages: others,
            programs: PROGRAMS.iter().map(file).collect::<Result<_, Error>>()?,
        })
    }

    /// One that was written before.
    ///
    /// # Errors
    /// It cannot be read, or is none.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = fs::read(path).map_err(Error::file(path))?;
        serde_json::from_slice(&text).map_err(|error| Error::file(path)(error.into()))
    }

    /// The text that [`Plan::read`] takes.
    pub fn to_text(&self) -> String {
        // Strings and numbers only: it has a text.
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }
}

/// SHA-256, in hexadecimal.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    let digest = digest(&SHA256, bytes);
    digest
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn check(name: &str, expected: &str, bytes: &[u8]) -> Result<(), Error> {
    let got = sha256(bytes);
    if got == expected {
        return Ok(());
    }
    Err(Error::Digest {
        name: name.to_owned(),
        expected: expected.to_owned(),
        got,
    })
}
