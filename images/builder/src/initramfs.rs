//! The initramfs: a `newc` archive compressed with zstd (the kernel's
//! `Documentation/driver-api/early-userspace/buffer-format.rst`).

use std::io::{self, Write as _};

use cpio::newc::{Builder, ModeFileType, trailer};

use crate::{Error, Node, Tree};

/// The archive stores a file's length in 32 bits.
const MAX_FILE_BYTES: u64 = u32::MAX as u64;

/// Makes the archive. Every time stamp is `time`, seconds, so that the same tree gives the same
/// bytes.
pub(crate) fn archive(tree: &Tree, time: u32) -> Result<Vec<u8>, Error> {
    let mut archive = Vec::new();
    for (number, (path, node)) in tree.iter().enumerate() {
        let (bytes, kind): (&[u8], _) = match node {
            Node::Folder => (&[], ModeFileType::Directory),
            Node::File { bytes, .. } => (bytes, ModeFileType::Regular),
            Node::Link(target) => (target.as_bytes(), ModeFileType::Symlink),
        };
        let length = u32::try_from(bytes.len()).map_err(|_| Error::TooLarge {
            what: path.to_owned(),
            max: MAX_FILE_BYTES,
            got: bytes.len() as u64,
        })?;
        // Each file gets an inode number of its own, because the kernel treats files with one
        // number as links to one file.
        let entry = Builder::new(path)
            .ino(u32::try_from(number + 1).unwrap_or(u32::MAX))
            .nlink(if matches!(node, Node::Folder) { 2 } else { 1 })
            .mtime(time)
            .mode(u32::from(node.mode()))
            .set_mode_file_type(kind);
        let mut writer = entry.write(&mut archive, length);
        writer
            .write_all(bytes)
            .and_then(|()| writer.finish().map(drop))
            .map_err(in_memory)?;
    }
    trailer(&mut archive).map_err(in_memory)?;
    Ok(archive)
}

/// Compresses the archive for the kernel: with a checksum, and a window that the kernel's decoder
/// allows.
pub(crate) fn compress(archive: &[u8], level: i32) -> Result<Vec<u8>, Error> {
    let mut encoder = zstd::Encoder::new(Vec::new(), level).map_err(in_memory)?;
    encoder
        .include_checksum(true)
        .and_then(|()| encoder.set_pledged_src_size(Some(archive.len() as u64)))
        .and_then(|()| encoder.write_all(archive))
        .map_err(in_memory)?;
    encoder.finish().map_err(in_memory)
}

fn in_memory(source: io::Error) -> Error {
    Error::File {
        path: "initramfs".into(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_holds_every_file_and_is_reproducible() {
        let mut tree = Tree::default();
        tree.program("init", b"#".to_vec()).unwrap();
        tree.file("etc/a", b"12345".to_vec()).unwrap();
        tree.add("lib64", Node::Link("lib".into())).unwrap();
        let archive = archive(&tree, 7).unwrap();
        assert_eq!(archive, super::archive(&tree, 7).unwrap());
        let mut rest = io::Cursor::new(&archive);
        let mut seen = Vec::new();
        loop {
            let reader = cpio::newc::Reader::new(rest).unwrap();
            let entry = reader.entry().clone();
            if entry.is_trailer() {
                break;
            }
            assert_eq!((entry.uid(), entry.gid(), entry.mtime()), (0, 0, 7));
            let mut bytes = Vec::new();
            rest = reader.to_writer(&mut bytes).unwrap();
            seen.push((entry.name().to_owned(), entry.mode(), bytes));
        }
        assert_eq!(
            seen,
            [
                ("etc".into(), 0o040_755, vec![]),
                ("etc/a".into(), 0o100_444, b"12345".to_vec()),
                ("init".into(), 0o100_555, b"#".to_vec()),
                ("lib64".into(), 0o120_777, b"lib".to_vec()),
            ]
        );
        let packed = compress(&archive, 3).unwrap();
        assert_eq!(zstd::decode_all(&packed[..]).unwrap(), archive);
    }
}
