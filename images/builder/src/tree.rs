//! The files of an image.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use crate::Error;

/// What stands at a path. Everything belongs to root, and nothing but folders can be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Node {
    /// A folder.
    Folder,
    /// A file.
    File {
        /// Its contents.
        bytes: Vec<u8>,
        /// Whether it can be run.
        executable: bool,
    },
    /// A symbolic link.
    Link(String),
}

impl Node {
    /// Its permissions.
    pub(crate) fn mode(&self) -> u16 {
        match self {
            Self::Folder => 0o755,
            Self::File { executable, .. } if *executable => 0o555,
            Self::File { .. } => 0o444,
            Self::Link(_) => 0o777,
        }
    }
}

/// Paths without a slash in front, in order; folders come before what is in them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Tree(BTreeMap<String, Node>);

impl Tree {
    /// A node with the folders above it.
    ///
    /// # Errors
    /// Something else is there already.
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

    /// A file that is only read.
    ///
    /// # Errors
    /// See [`Tree::add`].
    pub(crate) fn file(&mut self, path: &str, bytes: impl Into<Vec<u8>>) -> Result<(), Error> {
        let (bytes, executable) = (bytes.into(), false);
        self.add(path, Node::File { bytes, executable })
    }

    /// A file that is run, or linked into one that is.
    ///
    /// # Errors
    /// See [`Tree::add`].
    pub(crate) fn program(&mut self, path: &str, bytes: impl Into<Vec<u8>>) -> Result<(), Error> {
        let (bytes, executable) = (bytes.into(), true);
        self.add(path, Node::File { bytes, executable })
    }

    /// Everything, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Node)> {
        self.0.iter().map(|(path, node)| (path.as_str(), node))
    }

    /// Whether something stands at a path.
    pub(crate) fn contains(&self, path: &str) -> bool {
        self.0.contains_key(path)
    }

    /// The paths of everything that can be run.
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
