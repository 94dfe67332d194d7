//! A file of a project, read with a bound.

use std::path::Path;

/// Reads a text file of at most `most` bytes.
pub(super) fn read(path: &Path, most: u64) -> std::io::Result<String> {
    use std::io::Read as _;
    let mut text = String::new();
    let file = std::fs::File::open(path)?;
    file.take(most + 1).read_to_string(&mut text)?;
    if text.len() as u64 > most {
        return Err(std::io::Error::other(format!(
            "the file is over {most} bytes"
        )));
    }
    Ok(text)
}
