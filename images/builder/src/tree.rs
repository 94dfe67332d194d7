//! The files of an image.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use crate::Error;

/// A node of the tree. Root owns everything, and only folders are writable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Node {
    /// A folder.
    Folder,
    /// A file.
    File {
        /// Its contents.
        bytes: Vec<u8>,
        /// Whether the file is executable.
        executable: bool,
    },
    /// A symbolic link.
    Link(String),
}

impl Node {
    /// The node's permissions.
    pub(crate) fn mode(&self) -> u16 {
        match self {
            Self::Folder => 0o755,
            Self::File { executable, .. } if *executable => 0o555,
            Self::File { .. } => 0o444,
            Self::Link(_) => 0o777,
        }
    }
}

/// The files of an image, by path without a leading slash, sorted, so that a folder comes before
/// its contents.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Tree(BTreeMap<String, Node>);

impl Tree {
    /// Adds a node, and the folders above it.
    ///
    /// # Errors
    /// Something else has this path already.
    pub(crate) fn add(&mut self, path: &str, node: Node) -> Result<(), Error> {
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.add(parent, Node::Folder)?;
        }
        match self.0.entry(path.to_owned()) {
            Entry::Vacant(free) => {
                free.insert(node);
            }
            Entry::Occupied(taken) if *taken.get() == node => {}
            Entry::Occupied(_) => {
                let path = path.to_owned();
                return Err(Error::Twice { path });
            }
        }
        Ok(())
    }

    /// Adds a file that is only read.
    ///
    /// # Errors
    /// See [`Tree::add`].
    pub(crate) fn file(&mut self, path: &str, bytes: impl Into<Vec<u8>>) -> Result<(), Error> {
        let (bytes, executable) = (bytes.into(), false);
        self.add(path, Node::File { bytes, executable })
    }

    /// Adds an executable file or a library.
    ///
    /// # Errors
    /// See [`Tree::add`].
    pub(crate) fn program(&mut self, path: &str, bytes: impl Into<Vec<u8>>) -> Result<(), Error> {
        let (bytes, executable) = (bytes.into(), true);
        self.add(path, Node::File { bytes, executable })
    }

    /// All nodes, sorted by path.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Node)> {
        self.0.iter().map(|(path, node)| (path.as_str(), node))
    }

    /// Whether the path exists.
    pub(crate) fn contains(&self, path: &str) -> bool {
        self.0.contains_key(path)
    }

    /// The paths of all executable files.
    pub(crate) fn executables(&self) -> impl Iterator<Item = &str> {
        self.iter().filter_map(|(path, node)| match node {
            Node::File { executable, .. } => executable.then_some(path),
            Node::Folder | Node::Link(_) => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_come_first_and_nothing_is_replaced() {
        let mut tree = Tree::default();
        tree.program("usr/bin/a", b"1".to_vec()).unwrap();
        tree.file("usr/b", b"2".to_vec()).unwrap();
        tree.program("usr/bin/a", b"1".to_vec()).unwrap();
        let paths: Vec<_> = tree.iter().map(|(path, _)| path).collect();
        assert_eq!(paths, ["usr", "usr/b", "usr/bin", "usr/bin/a"]);
        assert_eq!(tree.executables().collect::<Vec<_>>(), ["usr/bin/a"]);
        let other = tree.file("usr/bin/a", b"1".to_vec());
        assert!(matches!(other, Err(Error::Twice { .. })));
        assert!(tree.file("usr/b/c", b"".to_vec()).is_err());
    }
}
