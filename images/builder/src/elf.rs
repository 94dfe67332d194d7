//! The libraries that a program needs.

use std::process::Command;

use object::elf::{DT_NEEDED, FileHeader64, PT_INTERP};
use object::read::elf::{Dyn as _, FileHeader, ProgramHeader as _};
use object::{Endianness, Object as _, ObjectSection as _};

use crate::Error;

type Header = FileHeader64<Endianness>;

/// The loader and the libraries that an ELF file needs.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Needs {
    /// The loader's path, of a dynamically linked program.
    pub(crate) interpreter: Option<String>,
    /// Names of libraries.
    pub(crate) libraries: Vec<String>,
}

pub(crate) fn needs(path: &str, bytes: &[u8]) -> Result<Needs, Error> {
    let broken = |error: object::Error| Error::Elf {
        path: path.to_owned(),
        message: error.to_string(),
    };
    let header = Header::parse(bytes).map_err(broken)?;
    let endian = header.endian().map_err(broken)?;
    let mut needs = Needs::default();
    for segment in header.program_headers(endian, bytes).map_err(broken)? {
        if segment.p_type(endian) == PT_INTERP {
            let text = segment.data(endian, bytes).unwrap_or_default();
            let text = String::from_utf8_lossy(text);
            needs.interpreter = Some(text.trim_end_matches('\0').to_owned());
        }
    }
    let sections = header.sections(endian, bytes).map_err(broken)?;
    let Some((entries, link)) = sections.dynamic(endian, bytes).map_err(broken)? else {
        return Ok(needs);
    };
    let strings = sections.strings(endian, bytes, link).map_err(broken)?;
    for entry in entries {
        if entry.tag(endian) == DT_NEEDED {
            let name = entry.string(endian, strings).map_err(broken)?;
            needs
                .libraries
                .push(String::from_utf8_lossy(name).into_owned());
        }
    }
    Ok(needs)
}

/// Finds a section by its name.
pub(crate) fn section<'a>(path: &str, bytes: &'a [u8], name: &str) -> Result<&'a [u8], Error> {
    let broken = |error: object::Error| Error::Elf {
        path: path.to_owned(),
        message: error.to_string(),
    };
    let file = object::File::parse(bytes).map_err(broken)?;
    let section = file.section_by_name(name).ok_or_else(|| Error::Elf {
        path: path.to_owned(),
        message: format!("it has no section {name}"),
    })?;
    section.data().map_err(broken)
}

/// Removes symbols and debug sections with binutils.
pub(crate) fn stripped(name: &str, program: &[u8]) -> Result<Vec<u8>, Error> {
    let folder = tempfile::tempdir().map_err(Error::file("a temporary folder"))?;
    let path = folder.path().join(name);
    std::fs::write(&path, program).map_err(Error::file(&path))?;
    let command = format!("strip {name}");
    let output = Command::new("strip")
        .args(["--strip-all", "--enable-deterministic-archives"])
        .arg(&path)
        .output();
    let failed = |message: String| Error::Tool {
        command: command.clone(),
        message,
    };
    let output =
        output.map_err(|error| failed(format!("{error}; install the Debian package binutils")))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(failed(said.trim().to_owned()));
    }
    std::fs::read(&path).map_err(Error::file(&path))
}
