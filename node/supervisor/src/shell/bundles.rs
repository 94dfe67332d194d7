//! Bundles on disk: sealed with the state key, checked against their digest whenever they are read.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use casemate_trust::id::Digest;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom as _, SystemRandom};

/// The folder of bundles.
pub(crate) struct Bundles {
    folder: PathBuf,
    key: LessSafeKey,
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
        let key = UnboundKey::new(&CHACHA20_POLY1305, key)
            .map_err(|_| other("the state key cannot be used"))?;
        Ok(Self {
            folder,
            key: LessSafeKey::new(key),
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

    /// Keeps a bundle whose digest was checked.
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
            self.folder.join(format!("{name}.new")),
        );
        let mut file = fs::OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(&nonce)?;
        file.write_all(&sealed)?;
        file.sync_all()?;
        fs::rename(&temporary, &path)?;
        fs::File::open(&self.folder)?.sync_all()
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

#[cfg(test)]
mod tests {
    use super::*;

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
        let path = folder.path().join("bundles").join(digest.to_string());
        let mut sealed = fs::read(&path).unwrap();
        assert!(!sealed.windows(bytes.len()).any(|window| window == bytes));
        sealed[20] ^= 1;
        fs::write(&path, sealed).unwrap();
        assert_eq!(bundles.read(&digest), None);
        assert!(!path.exists());
        bundles.write(&digest, &bytes).unwrap();
        bundles.keep(&BTreeSet::new());
        assert!(!path.exists());
    }
}
