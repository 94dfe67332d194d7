//! Bootable node images. A [`Profile`] says what belongs into one, a [`Plan`] names every file's
//! source by its digest, and [`build`] makes the artifact from the plan: the same bytes each time.
//!
//! All work is done by file tools: Debian packages are downloaded and read, never installed;
//! nothing is mounted, and no step needs root.
#![forbid(unsafe_code)]

mod build;
mod debian;
mod disk;
mod elf;
mod error;
mod initramfs;
mod inspect;
mod kernel;
mod package;
mod pe;
mod plan;
mod profile;
mod sbom;
mod signing;
mod squashfs;
mod tree;
mod uki;

pub use build::{Compression, Image, build};
pub use debian::{Apt, Source};
pub use disk::{BOOT_BYTES, BOOT_START, BootFile, boot_files, uki_path, write_disk};
pub use error::Error;
pub use inspect::{Inspected, inspect};
pub use plan::{File, PackageFile, Plan, Programs};
pub use profile::Profile;
pub use signing::SecureBootKey;
use tree::{Node, Tree};
