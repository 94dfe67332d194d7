//! Bundles on disk: sealed with the state key, checked against their digest whenever they are read.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use casemate_trust::id::Digest;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom as _, SystemRandom};

/// What bundles leave free on their disk, bytes. The vault's records lie on the same one, and a
/// withdrawal, which is a record, must find room when bundles have taken all that they may.
const RESERVED_BYTES: u64 = 64 * 1024 * 1024;
/// Of a bundle that is being written.
const TEMPORARY: &str = "new";
/// Of the empty file that says that a release has loaded on this node.
const LOADED: &str = "loaded";

/// The folder of bundles.
pub(crate) struct Bundles {
    folder: PathBuf,
    key: LessSafeKey,
    reserved_bytes: u64,
}

fn other(message: &str) -> std::io::Error {
    std::io::Error::other(message.to_owned())
}

impl Bundles {
    /// Bundles below `state`, sealed with `key`.
    pub(crate) fn open(state: &Path, key: &[u8; 32]) -> std::io::Result<Self> {
        let folder = state.join("bundles");
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)?;
        remove_half_written(&folder)?;
        let key = UnboundKey::new(&CHACHA20_POLY1305, key)
            .map_err(|_| other("the state key cannot be used"))?;
        Ok(Self {
            folder,
            key: LessSafeKey::new(key),
            reserved_bytes: RESERVED_BYTES,
        })
    }

    /// A bundle, if it is there and whole. One that is not is removed: it will be fetched again.
    pub(crate) fn read(&self, digest: &Digest) -> Option<Vec<u8>> {
        let path = self.folder.join(digest.to_string());
        let sealed = fs::read(&path).ok()?;
        let opened = self
            .unseal(digest, sealed)
            .filter(|bytes| Digest::of(bytes) == *digest);
        if opened.is_none() {
            tracing::warn!(%digest, "a stored bundle is damaged; it will be fetched again");
            // It is a cache of what the control plane has.
            let _removed = fs::remove_file(&path);
        }
        opened
    }

    /// Keeps a bundle whose digest was checked. Nothing of one that could not be written whole
    /// stays on the disk.
    ///
    /// # Errors
    /// The disk failed, or has no room beyond what is reserved for the vault.
    pub(crate) fn write(&self, digest: &Digest, bytes: &[u8]) -> std::io::Result<()> {
        let mut nonce = [0; NONCE_LEN];
        SystemRandom::new()
            .fill(&mut nonce)
            .map_err(|_| other("no random bytes"))?;
        let mut sealed = bytes.to_vec();
        let name = digest.to_string();
        let seal = self.key.seal_in_place_append_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(name.as_bytes()),
            &mut sealed,
        );
        seal.map_err(|_| other("sealing failed"))?;
        let (path, temporary) = (
            self.folder.join(&name),
            self.folder.join(format!("{name}.{TEMPORARY}")),
        );
        self.must_have_room((nonce.len() + sealed.len()) as u64)?;
        let write = || {
            let mut file = fs::OpenOptions::new()
                .create(true)
                .truncate(true)
                .write(true)
                .mode(0o600)
                .open(&temporary)?;
            file.write_all(&nonce)?;
            file.write_all(&sealed)?;
            file.sync_all()?;
            fs::rename(&temporary, &path)
        };
        write().inspect_err(|_| {
            // It may not be there; if it stays, the next start removes it.
            let _removed = fs::remove_file(&temporary);
        })?;
        fs::File::open(&self.folder)?.sync_all()
    }

    fn must_have_room(&self, bytes: u64) -> std::io::Result<()> {
        let found = rustix::fs::fstatvfs(fs::File::open(&self.folder)?)?;
        let free = found.f_bavail.saturating_mul(found.f_frsize);
        let needed = bytes.saturating_add(self.reserved_bytes);
        if free >= needed {
            return Ok(());
        }
        let message = format!(
            "{free} bytes are free, and {needed} are needed: {bytes} for the bundle, the rest is \
             reserved for the vault"
        );
        Err(std::io::Error::new(ErrorKind::StorageFull, message))
    }

    /// Bundles that are there, by digest, each with its size in bytes; whether they are whole shows when they are read.
    ///
    /// # Errors
    /// The disk failed.
    pub(crate) fn found(&self) -> std::io::Result<BTreeMap<[u8; 32], u64>> {
        let overhead = (NONCE_LEN + CHACHA20_POLY1305.tag_len()) as u64;
        let mut found = BTreeMap::new();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            if let Ok(digest) = entry.file_name().to_string_lossy().parse::<Digest>() {
                let bytes = entry.metadata()?.len().saturating_sub(overhead);
                found.insert(digest.0, bytes);
            }
        }
        Ok(found)
    }

    /// Removes bundles that no plan names.
    pub(crate) fn keep(&self, digests: &BTreeSet<Digest>) {
        let Ok(entries) = fs::read_dir(&self.folder) else {
            return;
        };
        for entry in entries.flatten() {
            let named = entry.file_name().to_string_lossy().parse::<Digest>();
            if named.is_ok_and(|digest| !digests.contains(&digest)) {
                // What cannot be removed now is tried again at the next plan.
                let _removed = fs::remove_file(entry.path());
            }
        }
    }

    /// Remembers that this release has loaded here. The mark is no secret and no proof to anybody: without it the release is
    /// tried once more.
    ///
    /// # Errors
    /// The disk failed.
    pub(crate) fn mark_loaded(&self, release: &Digest) -> std::io::Result<()> {
        let path = self.folder.join(format!("{release}.{LOADED}"));
        let mut options = fs::OpenOptions::new();
        options.create(true).write(true).mode(0o600);
        options.open(path).map(drop)
    }

    /// Releases that have loaded here.
    ///
    /// # Errors
    /// The disk failed.
    pub(crate) fn loaded(&self) -> std::io::Result<BTreeSet<[u8; 32]>> {
        let mut loaded = BTreeSet::new();
        for entry in fs::read_dir(&self.folder)? {
            let name = entry?.file_name();
            loaded.extend(release_of(&name.to_string_lossy()).map(|release| release.0));
        }
        Ok(loaded)
    }

    /// Forgets of all others that they have loaded.
    pub(crate) fn keep_loaded(&self, releases: &BTreeSet<Digest>) {
        let Ok(entries) = fs::read_dir(&self.folder) else {
            return;
        };
        for entry in entries.flatten() {
            let release = release_of(&entry.file_name().to_string_lossy());
            if release.is_some_and(|release| !releases.contains(&release)) {
                // What cannot be removed now is tried again at the next plan.
                let _removed = fs::remove_file(entry.path());
            }
        }
    }

    fn unseal(&self, digest: &Digest, sealed: Vec<u8>) -> Option<Vec<u8>> {
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE_LEN>()?;
        let mut bytes = sealed.to_vec();
        let name = digest.to_string();
        let length = self
            .key
            .open_in_place(
                Nonce::assume_unique_for_key(*nonce),
                Aad::from(name.as_bytes()),
                &mut bytes,
            )
            .ok()?
            .len();
        bytes.truncate(length);
        Some(bytes)
    }
}

/// The release that a mark names.
fn release_of(name: &str) -> Option<Digest> {
    name.strip_suffix(LOADED)?.strip_suffix('.')?.parse().ok()
}

/// What a kill in the middle of a write left behind.
fn remove_half_written(folder: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|end| end == TEMPORARY) {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bundles_leave_room_for_the_vault_and_nothing_half_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bundles");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("0123.new"), [0; 100]).unwrap();
        let mut bundles = Bundles::open(folder.path(), &[7; 32]).unwrap();
        let files = || fs::read_dir(&path).unwrap().count();
        assert_eq!(files(), 0, "left by a kill");
        // No disk has so much: as when all of it but the reserve is taken.
        bundles.reserved_bytes = u64::MAX;
        let digest = Digest::of(b"bytes");
        let error = bundles.write(&digest, b"bytes").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StorageFull);
        assert!(
            error.to_string().contains("reserved for the vault"),
            "{error}"
        );
        // A write that fails at its last step takes its file away.
        bundles.reserved_bytes = 0;
        fs::create_dir_all(path.join(digest.to_string()).join("in-the-way")).unwrap();
        bundles.write(&digest, b"bytes").unwrap_err();
        assert_eq!(files(), 1, "only what was in the way");
    }

    #[test]
    fn bundles_are_sealed_and_damage_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let bundles = Bundles::open(folder.path(), &[7; 32]).unwrap();
        let (bytes, digest) = (
            b"export default {}".to_vec(),
            Digest::of(b"export default {}"),
        );
        bundles.write(&digest, &bytes).unwrap();
        assert_eq!(bundles.read(&digest), Some(bytes.clone()));
        let found = [(digest.0, bytes.len() as u64)];
        assert_eq!(bundles.found().unwrap(), found.into());
        let path = folder.path().join("bundles").join(digest.to_string());
        let mut sealed = fs::read(&path).unwrap();
        assert!(!sealed.windows(bytes.len()).any(|window| window == bytes));
        sealed[20] ^= 1;
        fs::write(&path, sealed).unwrap();
        assert_eq!(bundles.read(&digest), None);
        assert!(!path.exists());
        bundles.write(&digest, &bytes).unwrap();
        let (one, two) = (Digest([1; 32]), Digest([2; 32]));
        for release in [one, two, one] {
            bundles.mark_loaded(&release).unwrap();
        }
        assert_eq!(
            bundles.found().unwrap(),
            found.into(),
            "a mark is no bundle"
        );
        bundles.keep_loaded(&[two].into());
        bundles.keep(&BTreeSet::new());
        assert!(!path.exists());
        assert_eq!(bundles.loaded().unwrap(), [two.0].into());
    }

    #[test]
    fn folders_of_earlier_supervisors_are_read() {
        const FIXTURES: [&str; 1] = ["node-1"];
        let (bytes, release) = (b"export default {}", Digest([1; 32]));
        let digest = Digest::of(bytes);
        for name in FIXTURES {
            if crate::archive::is_wanted(name) {
                let folder = tempfile::tempdir().unwrap();
                let bundles = Bundles::open(folder.path(), &[7; 32]).unwrap();
                bundles.write(&digest, bytes).unwrap();
                bundles.mark_loaded(&release).unwrap();
                crate::archive::pack(name, folder.path(), &[]);
            }
            let folder = crate::archive::unpack(name);
            crate::format::open(folder.path()).unwrap();
            let bundles = Bundles::open(folder.path(), &[7; 32]).unwrap();
            assert_eq!(bundles.read(&digest).as_deref(), Some(bytes.as_slice()));
            assert_eq!(bundles.loaded().unwrap(), [release.0].into());
        }
    }
}
