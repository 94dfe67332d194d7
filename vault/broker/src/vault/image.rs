//! `image.json`: the image that the judge has accepted for this machine, for init. Init is root and
//! trusts this file because only the vault's user can write this folder; the supervisor, which
//! delivers the image, cannot.

use std::fs;
use std::path::{Path, PathBuf};

use casemate_trust::image::Image;
use casemate_vault_store::{Room, Store, StoreError};

/// The file, in the vault's folder.
const FILE: &str = "image.json";
/// The file contains no secret.
const MODE: u32 = 0o644;

/// The content of `image.json`; the vault writes it for each accepted image.
pub(super) struct ImageFile {
    path: PathBuf,
}

/// The text of the file.
pub(super) fn describe(image: &Image) -> serde_json::Value {
    serde_json::json!({ "version": image.version, "digest": image.digest, "bytes": image.bytes })
}

impl ImageFile {
    pub(super) fn in_folder(folder: &Path) -> Self {
        Self {
            path: folder.join(FILE),
        }
    }

    /// Writes the file wholly and synced, or leaves it unchanged.
    pub(super) fn write(&self, store: &Store, image: &Image) -> Result<(), StoreError> {
        let text = format!("{}\n", describe(image));
        if fs::read(&self.path).is_ok_and(|found| found == text.as_bytes()) {
            return Ok(());
        }
        store.replace(&self.path, MODE, text.as_bytes(), Room::Root)
    }
}

#[cfg(test)]
mod tests {
    use casemate_trust::id::{Digest, FleetId};
    use casemate_vault_store::KEY_BYTES;
    use zeroize::Zeroizing;

    use super::*;

    fn store(folder: &Path) -> Store {
        let opened = Store::open(folder, &Zeroizing::new([7; KEY_BYTES]));
        opened.unwrap().0
    }

    #[test]
    fn the_file_names_the_newest_image_and_nothing_is_left_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path());
        let files = || fs::read_dir(folder.path()).unwrap().count();
        let before = files();
        let file = ImageFile::in_folder(folder.path());
        for version in ["1.2.3", "1.2.4", "1.2.4"] {
            let image = Image {
                fleet: FleetId([1; 32]),
                version: version.parse().unwrap(),
                digest: Digest([0xab; 32]),
                bytes: 77,
                pools: vec!["main".parse().unwrap()],
                issued: 1,
                expires: 2,
            };
            file.write(&store, &image).unwrap();
        }
        let text = fs::read_to_string(folder.path().join("image.json")).unwrap();
        let digest = "ab".repeat(32);
        let read: serde_json::Value = serde_json::from_str(&text).unwrap();
        let wanted = serde_json::json!({ "version": "1.2.4", "digest": digest, "bytes": 77 });
        assert_eq!(read, wanted);
        assert_eq!(files(), before + 1);
    }

    #[test]
    fn a_failed_write_is_reported() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path());
        let file = ImageFile::in_folder(&folder.path().join("not-there"));
        let image = Image {
            fleet: FleetId([1; 32]),
            version: "1.0.0".parse().unwrap(),
            digest: Digest([1; 32]),
            bytes: 1,
            pools: vec!["main".parse().unwrap()],
            issued: 1,
            expires: 2,
        };
        let text = file.write(&store, &image).unwrap_err().to_string();
        assert!(text.contains("image.json"), "{text}");
    }
}
