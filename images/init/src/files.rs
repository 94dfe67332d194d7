//! Reads files in folders that less trusted programs can write.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use rustix::fs::OFlags;

/// Reads a JSON file of at most `max_bytes` bytes, if the file exists.
pub(crate) fn read_json<T: serde::de::DeserializeOwned>(
    path: &Path,
    max_bytes: u64,
) -> io::Result<Option<T>> {
    let file = match open_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let mut text = Vec::new();
    file.take(max_bytes).read_to_end(&mut text)?;
    Ok(Some(serde_json::from_slice(&text)?))
}

/// Opens a file in a folder of a less trusted program: only a regular file, so that a pipe cannot
/// block and a link cannot lead elsewhere.
pub(crate) fn open_file(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, rustix::fs::Mode::empty())?);
    if !file.metadata()?.is_file() {
        return Err(io::Error::other(format!(
            "{} is not a regular file",
            path.display()
        )));
    }
    Ok(file)
}
