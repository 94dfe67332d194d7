//! Writes a text that is shown only once, such as a token, into a file that only its owner may
//! read.

use std::path::Path;

use crate::error::{Code, Error};
use crate::home::write_private;

/// Write a text that is shown once into a file for its owner alone; returns whether it was written.
pub(super) fn write_once(out: Option<&Path>, text: &str) -> Result<bool, Error> {
    let Some(path) = out else { return Ok(false) };
    if path.exists() {
        return Err(Error::new(
            Code::Exists,
            "the file exists already",
            "name another file, or remove it first",
        )
        .at(path.display()));
    }
    let path = if path.is_absolute() {
        path.to_owned()
    } else {
        Path::new(".").join(path)
    };
    write_private(&path, format!("{text}\n").as_bytes())?;
    Ok(true)
}
