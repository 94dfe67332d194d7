//! Keeps the bundles that were deployed from this home and that the newest manifest still lists, so
//! that they can be uploaded again to a control plane that has lost them.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use casemate_trust::id::Digest;

use crate::error::Error;
use crate::home::{Home, read_private, write_private};

/// The folder.
const FOLDER: &str = "bundles";
/// Largest sum of the kept bundles, bytes: fifty of the largest ones. Bundles that are listed first
/// are kept first.
const MAX_BYTES: u64 = 512 * 1024 * 1024;

/// A bundle, if it is kept and undamaged.
pub fn load(home: &Home, digest: &Digest) -> Option<Bytes> {
    let path = home.file(FOLDER).join(digest.to_string());
    let bytes = read_private(&path).ok().flatten()?;
    (Digest::of(&bytes) == *digest).then(|| bytes.into())
}

/// Keep those of the listed bundles that are kept already or new, and delete the others. The most
/// important is listed first.
///
/// # Errors
/// The folder cannot be written.
pub fn keep(
    home: &Home,
    listed: impl IntoIterator<Item = Digest>,
    new: &BTreeMap<Digest, Bytes>,
) -> Result<(), Error> {
    keep_within(home, listed, new, MAX_BYTES)
}

fn keep_within(
    home: &Home,
    listed: impl IntoIterator<Item = Digest>,
    new: &BTreeMap<Digest, Bytes>,
    most_bytes: u64,
) -> Result<(), Error> {
    let folder = home.file(FOLDER);
    let (mut kept, mut used_bytes) = (BTreeSet::new(), 0);
    for digest in listed {
        let path = folder.join(digest.to_string());
        let there = std::fs::metadata(&path).ok().map(|found| found.len());
        let fresh = new.get(&digest);
        let Some(bytes) = fresh.map(|bytes| bytes.len() as u64).or(there) else {
            continue;
        };
        if kept.contains(&digest) || used_bytes + bytes > most_bytes {
            continue;
        }
        if let Some(fresh) = fresh.filter(|_| load(home, &digest).is_none()) {
            write_private(&path, fresh)?;
        }
        used_bytes += bytes;
        kept.insert(digest);
    }
    for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
        let digest = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        if digest.is_none_or(|digest: Digest| !kept.contains(&digest)) {
            // A file that remains costs only its disk space.
            let _ = std::fs::remove_file(entry.path());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bundles_listed_first_are_kept_within_the_limit_and_the_others_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::locate(Some(dir.path().join("home"))).unwrap();
        let bundle = |byte: u8| Bytes::from(vec![byte; 100]);
        let digest = |byte: u8| Digest::of(&bundle(byte));
        let new: BTreeMap<_, _> = (1..=3).map(|byte| (digest(byte), bundle(byte))).collect();
        let listed = [digest(2), digest(9), digest(2), digest(1), digest(3)];
        keep_within(&home, listed, &new, 250).unwrap();
        assert_eq!(load(&home, &digest(2)), Some(bundle(2)));
        assert_eq!(load(&home, &digest(1)), Some(bundle(1)));
        assert_eq!(load(&home, &digest(3)), None);
        keep_within(&home, [digest(1)], &BTreeMap::new(), 250).unwrap();
        assert_eq!(load(&home, &digest(1)), Some(bundle(1)));
        assert_eq!(load(&home, &digest(2)), None);
        let path = home.file(FOLDER).join(digest(1).to_string());
        write_private(&path, b"changed").unwrap();
        assert_eq!(load(&home, &digest(1)), None);
    }
}
