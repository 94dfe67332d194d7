//! A plan: the exact files from which an image is made, as chosen by a profile.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};

use crate::debian::{Source, depends_on_kernel};
use crate::{Error, Profile, elf};

/// The package of the boot stub, which makes one bootable file of kernel and initramfs.
const STUB: &str = "systemd-boot-efi";

/// Our programs, and their paths in an image. Launch looks for the others in its own folder.
const PROGRAMS: &[(&str, &str)] = &[
    ("casemate-init", "init"),
    ("casemate-launch", "usr/lib/casemate/casemate-launch"),
    ("casemate-node", "usr/lib/casemate/casemate-node"),
    ("casemate-vault", "usr/lib/casemate/casemate-vault"),
    ("casemate-gateway", "usr/lib/casemate/casemate-gateway"),
    ("casemate-worker", "usr/lib/casemate/casemate-worker"),
];

/// A Debian package, identified by its digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PackageFile {
    /// Name.
    pub name: String,
    /// Version.
    pub version: String,
    /// Name of its file.
    pub file: String,
    /// SHA-256 of the file, in hexadecimal.
    pub sha256: String,
}

impl PackageFile {
    pub(crate) fn check(&self, bytes: &[u8]) -> Result<(), Error> {
        check(&self.file, &self.sha256, bytes)
    }
}

/// One of our programs, identified by its digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// Name of the program.
    pub name: String,
    /// SHA-256 of the program without its symbols, in hexadecimal.
    pub sha256: String,
    /// Path of the program in the image.
    pub path: String,
}

/// The folder with our programs, as Cargo builds them.
#[derive(Debug, Clone)]
pub struct Programs {
    folder: PathBuf,
}

impl Programs {
    /// The programs in a folder.
    pub fn in_folder(folder: impl Into<PathBuf>) -> Self {
        Self {
            folder: folder.into(),
        }
    }

    /// Reads a program and removes its symbols and debug sections.
    fn read(&self, name: &str) -> Result<Vec<u8>, Error> {
        let path = self.folder.join(name);
        let bytes = fs::read(&path).map_err(|source| Error::Program { path, source })?;
        elf::stripped(name, &bytes)
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
    /// SHA-256 of the profile's text, in hexadecimal: the profile of this name may differ in
    /// another version of casemate.
    pub profile_sha256: String,
    /// Version of the image.
    pub version: String,
    /// Unix time, seconds: the date of every file in the image, and the earliest time that a node's
    /// clock may show.
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
    /// Plans an image from the newest packages that a profile asks for.
    ///
    /// # Errors
    /// A package cannot be found, or a program is not built.
    pub fn make(
        profile: &Profile,
        version: &str,
        time: u32,
        programs: &Programs,
        packages: &mut dyn Source,
    ) -> Result<Self, Error> {
        let mut named = packages.find(&[&profile.kernel])?;
        let named = take(&mut named, &profile.kernel)?;
        let kernel = depends_on_kernel(&packages.get(&named)?, &named.file)?;
        let mut names = vec![kernel.as_str(), STUB];
        names.extend(profile.packages());
        let mut found = packages.find(&names)?;
        let file = |(name, path): &(&str, &str)| {
            Ok(File {
                name: (*name).to_owned(),
                sha256: sha256(&programs.read(name)?),
                path: (*path).to_owned(),
            })
        };
        Ok(Self {
            profile: profile.name.clone(),
            profile_sha256: profile.sha256.clone(),
            version: version.to_owned(),
            time,
            kernel: take(&mut found, &kernel)?,
            stub: take(&mut found, STUB)?,
            packages: found,
            programs: PROGRAMS.iter().map(file).collect::<Result<_, Error>>()?,
        })
    }

    /// Reads a plan that was written earlier.
    ///
    /// # Errors
    /// The file cannot be read, or is not a plan.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = fs::read(path).map_err(Error::file(path))?;
        let plan: Self =
            serde_json::from_slice(&text).map_err(|error| Error::file(path)(error.into()))?;
        match plan.odd() {
            None => Ok(plan),
            Some(odd) => {
                let error =
                    std::io::Error::other(format!("{odd:?} is not the name of a file or package"));
                Err(Error::file(path)(error))
            }
        }
    }

    /// A name that a tool would read as an option, or that leads to another folder.
    fn odd(&self) -> Option<&str> {
        let packages = [&self.kernel, &self.stub]
            .into_iter()
            .chain(self.packages.values());
        let named = packages.flat_map(|package| [&package.name, &package.version, &package.file]);
        let ours = self.programs.iter().map(|file| &file.name);
        let mut all = named.chain(ours).chain([&self.version, &self.profile]);
        all.find(|name| !is_plain(name)).map(String::as_str)
    }

    /// The text that [`Plan::read`] takes.
    pub fn to_text(&self) -> String {
        serde_json::to_string_pretty(self).expect("strings and numbers are JSON") + "\n"
    }
}

fn take(found: &mut BTreeMap<String, PackageFile>, name: &str) -> Result<PackageFile, Error> {
    found.remove(name).ok_or_else(|| Error::Package {
        name: name.to_owned(),
        message: "it was not found".into(),
    })
}

/// Whether a name is one that Debian or we use (deb-version(7) and more).
fn is_plain(name: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || b".+-~_:%".contains(&byte);
    name.bytes().all(is_word) && name.starts_with(|first: char| first.is_ascii_alphanumeric())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_names_files_and_nothing_else() {
        let package = |name: &str| PackageFile {
            name: name.into(),
            version: "1:2.36-9+deb12u1".into(),
            file: format!("{name}_1%3a2.36_amd64.deb"),
            sha256: "ab".repeat(32),
        };
        let plan = Plan {
            profile: "virtual-machine".into(),
            profile_sha256: String::new(),
            version: "0.1.0".into(),
            time: 1,
            kernel: package("linux"),
            stub: package("stub"),
            packages: BTreeMap::from([("libc6".into(), package("libc6"))]),
            programs: vec![File {
                name: "casemate-init".into(),
                sha256: String::new(),
                path: "init".into(),
            }],
        };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plan.json");
        let read = |plan: &Plan| {
            fs::write(&path, plan.to_text()).unwrap();
            Plan::read(&path)
        };
        assert_eq!(read(&plan).unwrap(), plan);
        for odd in [
            "-oAcquire::http::Proxy=x",
            "../etc/passwd",
            "/bin/sh",
            "a/b",
            "",
        ] {
            let mut other = plan.clone();
            other.kernel.name = odd.into();
            assert!(read(&other).is_err(), "{odd}");
            let mut other = plan.clone();
            other.programs[0].name = odd.into();
            assert!(read(&other).is_err(), "{odd}");
        }
    }
}
