//! The bundle as bytes: a USTAR archive that depends on nothing but names and contents.

use std::collections::BTreeMap;

use crate::error::Error;

/// Name and content of each file.
pub type Files = BTreeMap<String, Vec<u8>>;

/// Pack files in the order of their names, each with mode 0644, owner 0 and time 0, so that the
/// same sources give the same digest on every machine.
///
/// # Errors
/// A name is longer than the format allows.
pub fn pack(files: &Files) -> Result<Vec<u8>, Error> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_ustar();
        header
            .set_path(name)
            .map_err(|error| Error::internal(format!("module name {name}")).source(error))?;
        header.set_size(content.len() as u64);
        header.set_entry_type(tar::EntryType::Regular);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_cksum();
        builder
            .append(&header, content.as_slice())
            .map_err(|error| Error::internal("packing the bundle failed").source(error))?;
    }
    builder
        .into_inner()
        .map_err(|error| Error::internal("packing the bundle failed").source(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_depends_on_names_and_contents_alone() {
        let files = Files::from([
            ("main.js".to_owned(), b"export {}".to_vec()),
            ("a.js".to_owned(), Vec::new()),
        ]);
        let bytes = pack(&files).unwrap();
        assert_eq!(bytes, pack(&files).unwrap());
        let mut archive = tar::Archive::new(bytes.as_slice());
        let entries: Vec<_> = archive
            .entries()
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let header = entry.header();
                assert_eq!(
                    (header.mtime().unwrap(), header.mode().unwrap()),
                    (0, 0o644)
                );
                entry.path().unwrap().to_string_lossy().into_owned()
            })
            .collect();
        assert_eq!(entries, ["a.js", "main.js"]);
    }
}
