//! Profiles: the contents of each kind of image.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::Error;
use crate::plan::sha256;

/// The profiles that come with the program, by name.
const PROFILES: &[(&str, &str)] = &[
    (
        "virtual-machine",
        include_str!("../../profiles/virtual-machine.toml"),
    ),
    ("bare-metal", include_str!("../../profiles/bare-metal.toml")),
];

/// The packages, modules and files of one kind of image. Paths are those inside of packages,
/// without a leading slash.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Name of the profile.
    #[serde(skip)]
    pub name: String,
    /// SHA-256 of the profile's text, in hexadecimal.
    #[serde(skip)]
    pub sha256: String,
    /// A line of description for users.
    pub about: String,
    /// The Debian package that depends on the newest kernel.
    pub kernel: String,
    /// Kernel modules, in the order in which init loads them.
    pub modules: Vec<String>,
    /// Packages from which shared libraries are taken as they are needed.
    pub libraries: Vec<String>,
    /// The kernel's command line.
    pub command_line: Vec<String>,
    /// The package with the certificates of public authorities.
    pub certificates: String,
    /// Files that are taken from other packages.
    pub files: BTreeMap<String, Vec<String>>,
}

impl Profile {
    /// Finds a profile by its name.
    ///
    /// # Errors
    /// There is no profile of that name.
    pub fn named(name: &str) -> Result<Self, Error> {
        let found = PROFILES.iter().find(|(known, _)| *known == name);
        let (_, text) = found.ok_or_else(|| Error::ProfileUnknown {
            name: name.to_owned(),
            known: Self::names().collect::<Vec<_>>().join(", "),
        })?;
        let read = toml::from_str(text).map_err(|source| Error::Profile {
            name: name.to_owned(),
            source,
        })?;
        Ok(Self {
            name: name.to_owned(),
            sha256: sha256(text.as_bytes()),
            ..read
        })
    }

    /// Checks that this is the profile with which a plan was made.
    pub(crate) fn check(&self, expected: &str) -> Result<(), Error> {
        if self.sha256 == expected {
            return Ok(());
        }
        Err(Error::Digest {
            name: format!("the profile {}", self.name),
            expected: expected.to_owned(),
            got: self.sha256.clone(),
        })
    }

    /// The names of all profiles.
    pub fn names() -> impl Iterator<Item = &'static str> {
        PROFILES.iter().map(|(name, _)| *name)
    }

    /// Every package from which files are taken, except the kernel and the boot stub.
    pub(crate) fn packages(&self) -> impl Iterator<Item = &str> {
        let named = self.files.keys().chain(&self.libraries);
        named.chain([&self.certificates]).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_profile_reads() {
        for name in Profile::names() {
            let profile = Profile::named(name).unwrap();
            assert!(profile.packages().count() > 3, "{name}");
            // A quote would need an escape, which not all parsers of the command line support.
            assert!(
                profile
                    .command_line
                    .iter()
                    .all(|word| !word.contains([' ', '"']))
            );
        }
        let error = Profile::named("mainframe").unwrap_err();
        assert!(error.to_string().contains("virtual-machine"));
    }
}
