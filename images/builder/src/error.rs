//! Why no image was made.

use std::io;
use std::path::PathBuf;

/// See the module.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No profile of this name.
    #[error("expected a profile ({known}), got {name:?}")]
    ProfileUnknown {
        /// What was asked for.
        name: String,
        /// Those that there are.
        known: String,
    },
    /// A profile that does not parse.
    #[error("the profile {name} cannot be read")]
    Profile {
        /// Which.
        name: String,
        /// Where and why.
        #[source]
        source: toml::de::Error,
    },
    /// A program of ours is not where it should be.
    #[error("{}: expected the program, which `cargo build --release` makes", path.display())]
    Program {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A tool of this machine could not be run, or did not do what it should.
    #[error("{command}: {message}")]
    Tool {
        /// The command.
        command: String,
        /// What it said.
        message: String,
    },
    /// A file of the cache or of the output cannot be written or read.
    #[error("{}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What was downloaded, or lies in the cache, is not what the plan names.
    #[error("{name}: expected the SHA-256 digest {expected}, got {got}")]
    Digest {
        /// The package or program.
        name: String,
        /// In the plan.
        expected: String,
        /// Of the bytes.
        got: String,
    },
    /// A Debian package that is none, or is over our bounds.
    #[error("the package {name}: {message}")]
    Package {
        /// Its file.
        name: String,
        /// What is wrong.
        message: String,
    },
    /// A file that a profile takes from a package is not in it.
    #[error("the package {package} has no {path}")]
    NotInPackage {
        /// The package.
        package: String,
        /// The path.
        path: String,
    },
    /// A program needs a library that no package of the profile has.
    #[error("{path} needs {library}, which no package of the profile has")]
    Library {
        /// Who needs it.
        path: String,
        /// Its soname.
        library: String,
    },
    /// A kernel module that does not exist, or has no readable description.
    #[error("the kernel module {name}: {message}")]
    Module {
        /// Which.
        name: String,
        /// What is wrong.
        message: String,
    },
    /// Two different things at one path.
    #[error("two different files want to be {path}")]
    Twice {
        /// Where.
        path: String,
    },
    /// A file that should be an ELF program or library.
    #[error("{path}: no ELF file: {message}")]
    Elf {
        /// Which.
        path: String,
        /// Why.
        message: String,
    },
    /// A file that is no image of ours.
    #[error("the file is no node image: {message}")]
    NoImage {
        /// What is wrong.
        message: String,
    },
    /// The boot stub is no PE file that sections can be added to.
    #[error("the boot stub: {0}")]
    Stub(String),
    /// The key that an image is signed with.
    #[error("the image's key")]
    Key(#[from] casemate_measured_boot::Error),
    /// A version that cannot be compared.
    #[error("the image's version")]
    Version(#[from] casemate_trust::image::ImageVersionError),
    /// More than the format can hold.
    #[error("{what}: expected at most {max} bytes, got {got}")]
    TooLarge {
        /// What.
        what: String,
        /// The most.
        max: u64,
        /// How much it is.
        got: u64,
    },
}

impl Error {
    /// A file that cannot be used.
    pub(crate) fn file(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { path, source }
    }
}
