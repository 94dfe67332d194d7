//! The system's files as a compressed file system (the kernel's
//! `Documentation/filesystems/squashfs.rst`): files that are never read take no more memory than
//! their compressed bytes.

use std::io::Cursor;

use backhand::compression::{CompressionOptions, Compressor, Zstd};
use backhand::{
    BackhandError, DEFAULT_BLOCK_SIZE, FilesystemCompressor, FilesystemWriter, NodeHeader,
};

use crate::{Error, Node, Tree};

/// Makes the file system. Every time stamp is `time`, seconds, so that the same tree gives the same
/// bytes.
pub(crate) fn squash(tree: &Tree, time: u32, level: u32) -> Result<Vec<u8>, Error> {
    written(tree, time, level).map_err(|error| Error::File {
        path: "system.squashfs".into(),
        source: std::io::Error::other(error),
    })
}

fn written(tree: &Tree, time: u32, level: u32) -> Result<Vec<u8>, BackhandError> {
    let options = CompressionOptions::Zstd(Zstd {
        compression_level: level,
    });
    let mut writer = FilesystemWriter::default();
    writer.set_time(time);
    writer.set_block_size(DEFAULT_BLOCK_SIZE);
    writer.set_compressor(FilesystemCompressor::new(Compressor::Zstd, Some(options))?);
    writer.set_root_mode(Node::Folder.mode());
    for (path, node) in tree.iter() {
        let header = NodeHeader::new(node.mode(), 0, 0, time);
        match node {
            Node::Folder => writer.push_dir(path, header)?,
            Node::File { bytes, .. } => writer.push_file(&bytes[..], path, header)?,
            Node::Link(target) => writer.push_symlink(target, path, header)?,
        }
    }
    let mut bytes = Cursor::new(Vec::new());
    writer.write(&mut bytes)?;
    Ok(bytes.into_inner())
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use backhand::{FilesystemReader, InnerNode};

    use super::*;

    #[test]
    fn the_image_holds_every_file_and_is_reproducible() {
        let large: Vec<u8> = (0..400_000_u32).flat_map(u32::to_le_bytes).collect();
        let mut tree = Tree::default();
        tree.program("usr/bin/a", large.clone()).unwrap();
        tree.file("etc/b", b"12345".to_vec()).unwrap();
        tree.add("lib64", Node::Link("lib".into())).unwrap();
        let bytes = squash(&tree, 7, 3).unwrap();
        assert!(bytes.len() < large.len());
        assert!(bytes == squash(&tree, 7, 3).unwrap());
        let read = FilesystemReader::from_reader(Cursor::new(bytes)).unwrap();
        let mut seen = Vec::new();
        for node in read.files() {
            let header = node.header;
            assert_eq!((header.uid, header.gid), (0, 0));
            let mut bytes = Vec::new();
            if let InnerNode::File(file) = &node.inner {
                read.file(file).reader().read_to_end(&mut bytes).unwrap();
            }
            seen.push((
                node.fullpath.display().to_string(),
                header.permissions,
                bytes,
            ));
        }
        let expected: [(&str, u16, &[u8]); 7] = [
            ("/", 0o755, b""),
            ("/etc", 0o755, b""),
            ("/etc/b", 0o444, b"12345"),
            ("/lib64", 0o777, b""),
            ("/usr", 0o755, b""),
            ("/usr/bin", 0o755, b""),
            ("/usr/bin/a", 0o555, &large),
        ];
        let seen = seen
            .iter()
            .map(|(path, mode, bytes)| (path.as_str(), *mode, &bytes[..]));
        assert!(seen.eq(expected));
    }
}
