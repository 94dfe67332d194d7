//! Reasons why no image was made.

use std::io;
use std::path::PathBuf;

/// The error of this crate. Each variant names the file, package or tool that is to blame.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no profile of this name.
    #[error("expected a profile ({known}), got {name:?}")]
    ProfileUnknown {
        /// The requested name.
        name: String,
        /// The existing profiles.
        known: String,
    },
    /// A profile that does not parse.
    #[error("the profile {name} cannot be read")]
    Profile {
        /// The profile.
        name: String,
        /// The mistake and its position.
        #[source]
        source: toml::de::Error,
    },
    /// One of our programs cannot be read.
    #[error("{}: expected the program, which `cargo build --release` makes", path.display())]
    Program {
        /// The expected path.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A tool of this machine could not be run, or failed.
    #[error("{command}: {message}")]
    Tool {
        /// The command.
        command: String,
        /// The tool's message.
        message: String,
    },
    /// A file of the cache or of the output cannot be written or read.
    #[error("{}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A downloaded or cached file does not have the digest in the plan.
    #[error("{name}: expected the SHA-256 digest {expected}, got {got}")]
    Digest {
        /// The package or program.
        name: String,
        /// The digest in the plan.
        expected: String,
        /// The digest of the file.
        got: String,
    },
    /// A file is not a valid Debian package, or exceeds our bounds.
    #[error("the package {name}: {message}")]
    Package {
        /// The package's file.
        name: String,
        /// What is wrong with the package.
        message: String,
    },
    /// A package lacks a file that a profile takes from it.
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
        /// The program or library that needs it.
        path: String,
        /// The library's soname.
        library: String,
    },
    /// A kernel module that does not exist, or has no readable description.
    #[error("the kernel module {name}: {message}")]
    Module {
        /// The module.
        name: String,
        /// What is wrong with the module.
        message: String,
    },
    /// Two different files have one path.
    #[error("two different files have the path {path}")]
    Twice {
        /// The path.
        path: String,
    },
    /// An expected ELF program or library cannot be parsed.
    #[error("{path}: no ELF file: {message}")]
    Elf {
        /// The file.
        path: String,
        /// The cause.
        message: String,
    },
    /// A file is not a node image.
    #[error("the file is not a node image: {message}")]
    NoImage {
        /// What is wrong with the file.
        message: String,
    },
    /// The boot stub is not a PE file to which sections can be added.
    #[error("the boot stub: {0}")]
    Stub(String),
    /// The key that signs the image cannot be used.
    #[error("the image's key")]
    Key(#[from] casemate_measured_boot::Error),
    /// The version is not one of three numbers.
    #[error("the image's version")]
    Version(#[from] casemate_trust::image::ImageVersionError),
    /// A content exceeds the limit of its format.
    #[error("{what}: expected at most {max} bytes, got {got}")]
    TooLarge {
        /// The content.
        what: String,
        /// The limit, bytes.
        max: u64,
        /// The size, bytes.
        got: u64,
    },
}

impl Error {
    /// Adds the path to the error of a file operation.
    pub(crate) fn file(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { path, source }
    }
}
