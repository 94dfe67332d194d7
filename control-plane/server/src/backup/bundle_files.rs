//! The files of bundles: found in a folder, copied into another, and checked to be what their names
//! say.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use casemate_trust::id::{Digest, TenantId};

use crate::failure::Failure;

/// Bytes that are read at a time.
const CHUNK_BYTES: usize = 256 * 1024;

/// A bundle's file.
#[derive(Debug)]
pub(super) struct BundleFile {
    pub(super) tenant: TenantId,
    pub(super) digest: Digest,
    pub(super) bytes: u64,
    pub(super) path: PathBuf,
}

/// Every bundle in a folder. The file of an upload in progress is not a bundle.
pub(super) fn list(folder: &Path) -> Result<Vec<BundleFile>, Failure> {
    let failed = |error| Failure::io(format!("cannot read {}: {error}", folder.display()));
    let mut bundles = Vec::new();
    for tenant in fs::read_dir(folder).map_err(failed)? {
        let tenant = tenant.map_err(failed)?;
        let Some(id) = parse::<TenantId>(&tenant.file_name()) else {
            continue;
        };
        for entry in fs::read_dir(tenant.path()).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if let Some(digest) = parse(&entry.file_name()) {
                bundles.push(BundleFile {
                    tenant: id,
                    digest,
                    bytes: entry.metadata().map_err(failed)?.len(),
                    path: entry.path(),
                });
            }
        }
    }
    bundles.sort_by_key(|bundle| (bundle.tenant, bundle.digest));
    Ok(bundles)
}

fn parse<T: std::str::FromStr>(name: &OsStr) -> Option<T> {
    name.to_str()?.parse().ok()
}

impl BundleFile {
    /// Copies the bundle into another folder of bundles.
    pub(super) fn copy(&self, to: &Path) -> Result<(), Failure> {
        let folder = to.join(self.tenant.to_string());
        if !folder.exists() {
            let made = DirBuilder::new().mode(0o700).create(&folder);
            made.map_err(|error| Failure::cannot_write(&folder, &error))?;
        }
        copy(&self.path, &folder.join(self.digest.to_string()))
    }

    /// Whether the bytes have the digest of the name.
    pub(super) fn is_whole(&self) -> Result<bool, Failure> {
        let read = || {
            let mut file = File::open(&self.path)?;
            let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
            let mut chunk = vec![0; CHUNK_BYTES];
            loop {
                match file.read(&mut chunk)? {
                    0 => return Ok(hash.finish()),
                    read => hash.update(&chunk[..read]),
                }
            }
        };
        let read: io::Result<_> = read();
        let hash = read.map_err(|error| {
            Failure::io(format!("cannot read {}: {error}", self.path.display()))
        })?;
        Ok(hash.as_ref() == self.digest.0)
    }
}

/// Copies a file into one that only its owner can read, and syncs it to the disk.
pub(super) fn copy(from: &Path, to: &Path) -> Result<(), Failure> {
    let mut source = File::open(from)
        .map_err(|error| Failure::io(format!("cannot read {}: {error}", from.display())))?;
    let mut write = || {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(to)?;
        io::copy(&mut source, &mut file)?;
        file.sync_all()
    };
    write().map_err(|error| Failure::cannot_write(to, &error))
}
