//! The bundle: a tar archive of modules, by name. Its bytes come from outside, so one function
//! parses them into a type.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

/// Largest archive, in bytes: the control plane's limit, plus tar's padding.
pub(crate) const MAX_BUNDLE_BYTES: usize = 11 * 1024 * 1024;
/// Most modules. A bundler makes one, and a few assets.
const MAX_MODULES: usize = 1000;
/// Longest module name, in bytes: the most that a tar header holds without extensions.
const MAX_NAME_BYTES: usize = 255;
/// Size of a tar block.
const BLOCK_BYTES: usize = 512;

/// The kind of a module, by the ending of its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// JavaScript.
    Script,
    /// WebAssembly; imported as a `WebAssembly.Module`.
    Wasm,
    /// Imported as a parsed value.
    Json,
    /// Imported as a string.
    Text,
    /// Imported as an `ArrayBuffer`.
    Binary,
    /// A source map, which cannot be imported.
    SourceMap,
}

/// One module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Module {
    /// The module's kind.
    pub(crate) kind: Kind,
    /// The module's content.
    pub(crate) bytes: Box<[u8]>,
}

/// Modules by name, such as `main.js` or `lib/image.wasm`.
#[derive(Debug, Default)]
pub(crate) struct Bundle(HashMap<String, Module>);

/// Why an archive is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BundleError {
    /// The archive exceeds a limit.
    #[error("expected at most {MAX_MODULES} modules and {MAX_BUNDLE_BYTES} bytes")]
    TooLarge,
    /// The archive ends inside an entry, or its end marker is missing.
    #[error("the archive is cut off")]
    Truncated,
    /// A header has a wrong checksum or an invalid number.
    #[error("the archive's header at byte {0} is damaged")]
    Header(usize),
    /// An entry is a link, a folder or a device.
    #[error("expected nothing but plain files, found type {0:?}")]
    NotAFile(char),
    /// A name is not a plain relative path.
    #[error("expected a plain relative name, found {0:?}")]
    Name(String),
    /// A name has an unknown ending.
    #[error("expected .js, .mjs, .wasm, .json, .txt, .bin or .js.map, found {0:?}")]
    Ending(String),
    /// Two entries have the same name.
    #[error("the name {0:?} occurs twice in the archive")]
    Duplicate(String),
}

impl Bundle {
    /// Parses the modules of an archive.
    ///
    /// # Errors
    /// See [`BundleError`]: the archive is not a plain USTAR archive of plain files.
    pub(crate) fn parse(archive: &[u8]) -> Result<Self, BundleError> {
        if archive.len() > MAX_BUNDLE_BYTES {
            return Err(BundleError::TooLarge);
        }
        let mut modules = HashMap::new();
        let mut at = 0;
        let mut archived = tar::Archive::new(archive);
        // Raw entries: an extension of the format is refused like a link.
        let entries = archived.entries().map_err(|_| BundleError::Truncated)?;
        for entry in entries.raw(true) {
            let entry = entry.map_err(|_| damaged(archive, at))?;
            let (name, size) = name_and_size(entry.header(), at)?;
            let bytes = archive
                .get(at + BLOCK_BYTES..)
                .and_then(|rest| rest.get(..size))
                .ok_or(BundleError::Truncated)?
                .into();
            at += BLOCK_BYTES + size.next_multiple_of(BLOCK_BYTES);
            if modules.len() == MAX_MODULES {
                return Err(BundleError::TooLarge);
            }
            let kind = kind_of(&name).ok_or_else(|| BundleError::Ending(name.clone()))?;
            match modules.entry(name) {
                Entry::Occupied(same) => return Err(BundleError::Duplicate(same.key().clone())),
                Entry::Vacant(free) => drop(free.insert(Module { kind, bytes })),
            }
        }
        // The crate also takes the end of the bytes for the end of the archive.
        match archive.get(at..at + BLOCK_BYTES) {
            Some(_) => Ok(Self(modules)),
            None => Err(BundleError::Truncated),
        }
    }

    /// The module of this name.
    pub(crate) fn get(&self, name: &str) -> Option<&Module> {
        self.0.get(name)
    }
}

/// The error for an unreadable header at this byte: truncated, or malformed.
fn damaged(archive: &[u8], at: usize) -> BundleError {
    if archive.len() < at.saturating_add(BLOCK_BYTES) {
        BundleError::Truncated
    } else {
        BundleError::Header(at)
    }
}

/// The name and size of a plain file.
fn name_and_size(header: &tar::Header, at: usize) -> Result<(String, usize), BundleError> {
    if header.as_ustar().is_none() {
        return Err(BundleError::Header(at));
    }
    let size = header.entry_size().ok();
    let size = size.and_then(|size| usize::try_from(size).ok());
    let size = size.ok_or(BundleError::Header(at))?;
    if size > MAX_BUNDLE_BYTES {
        return Err(BundleError::TooLarge);
    }
    if header.entry_type() != tar::EntryType::Regular {
        let kind = char::from(header.entry_type().as_byte());
        return Err(BundleError::NotAFile(kind));
    }
    let name = header.path_bytes().into_owned();
    let name = String::from_utf8(name).map_err(|error| BundleError::Name(error.to_string()))?;
    if is_plain(&name) {
        Ok((name, size))
    } else {
        Err(BundleError::Name(name))
    }
}

/// Whether a name consists of segments of letters, digits and a few signs, none of them `.` or
/// `..`, so that it is also a path of a URL.
fn is_plain(name: &str) -> bool {
    let plain = |byte: u8| {
        byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b'@' | b'+' | b'~')
    };
    (1..=MAX_NAME_BYTES).contains(&name.len())
        && name
            .split('/')
            .all(|part| !matches!(part, "" | "." | "..") && part.bytes().all(plain))
}

fn kind_of(name: &str) -> Option<Kind> {
    let (_, ending) = name.rsplit_once('.')?;
    Some(match ending {
        "js" | "mjs" => Kind::Script,
        "wasm" => Kind::Wasm,
        "json" => Kind::Json,
        "txt" => Kind::Text,
        "bin" => Kind::Binary,
        "map" => Kind::SourceMap,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, bytes) in files {
            let mut header = tar::Header::new_ustar();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            // Bypasses the checks of `set_path`, because hostile names are tested.
            header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
            header.set_cksum();
            builder.append(&header, *bytes).unwrap();
        }
        builder.into_inner().unwrap()
    }

    #[test]
    fn modules_by_name() {
        let files: &[(&str, &[u8])] = &[
            ("main.js", b"export default {}"),
            ("a/b.wasm", &[0; 513]),
            ("empty.txt", b""),
        ];
        let bundle = Bundle::parse(&archive(files)).unwrap();
        assert_eq!(bundle.get("main.js").unwrap().kind, Kind::Script);
        assert_eq!(&*bundle.get("a/b.wasm").unwrap().bytes, &[0; 513]);
        assert_eq!(bundle.get("empty.txt").unwrap().kind, Kind::Text);
        assert_eq!(bundle.get("other.js"), None);
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        let long = "x".repeat(99) + ".";
        for name in [
            "../a.js",
            "/a.js",
            "a//b.js",
            "a/./b.js",
            "a/../b.js",
            "a b.js",
            "a%2e.js",
            "ä.js",
            "a\\b.js",
            "",
            &long,
        ] {
            let error = Bundle::parse(&archive(&[(name, b"")])).unwrap_err();
            assert!(
                matches!(error, BundleError::Name(_) | BundleError::Ending(_)),
                "{name:?}: {error}"
            );
        }
        for name in ["a.node", "a", "a.ts", "a.js.gz"] {
            assert_eq!(
                Bundle::parse(&archive(&[(name, b"")])).unwrap_err(),
                BundleError::Ending(name.into())
            );
        }
    }

    #[test]
    fn duplicates_and_crowds_are_refused() {
        let twice = archive(&[("a.js", b"1"), ("a.js", b"2")]);
        assert_eq!(
            Bundle::parse(&twice).unwrap_err(),
            BundleError::Duplicate("a.js".into())
        );
        let names: Vec<String> = (0..=MAX_MODULES).map(|i| format!("{i}.js")).collect();
        let many: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &b""[..])).collect();
        assert_eq!(
            Bundle::parse(&archive(&many)).unwrap_err(),
            BundleError::TooLarge
        );
        assert_eq!(
            Bundle::parse(&vec![0; MAX_BUNDLE_BYTES + 1]).unwrap_err(),
            BundleError::TooLarge
        );
    }

    #[test]
    fn links_and_damage_are_refused() {
        let mut link = archive(&[("a.js", b"")]);
        link[156] = b'2';
        assert_eq!(
            Bundle::parse(&link).unwrap_err(),
            BundleError::Header(0),
            "the checksum covers the type"
        );
        let mut header = tar::Header::from_byte_slice(&link[..BLOCK_BYTES]).clone();
        header.set_cksum();
        link[..BLOCK_BYTES].copy_from_slice(header.as_bytes());
        assert_eq!(
            Bundle::parse(&link).unwrap_err(),
            BundleError::NotAFile('2')
        );
        let mut huge = archive(&[("a.js", b"")]);
        huge[124..136].copy_from_slice(b"777777777777");
        let mut header = tar::Header::from_byte_slice(&huge[..BLOCK_BYTES]).clone();
        header.set_cksum();
        huge[..BLOCK_BYTES].copy_from_slice(header.as_bytes());
        assert_eq!(Bundle::parse(&huge).unwrap_err(), BundleError::TooLarge);
    }

    #[test]
    fn every_cut_and_every_flipped_byte_is_survived() {
        let whole = archive(&[("main.js", b"export default {}"), ("b.json", b"{}")]);
        let end = 4 * BLOCK_BYTES;
        for length in 0..=end {
            assert_eq!(
                Bundle::parse(&whole[..length]).unwrap_err(),
                BundleError::Truncated,
                "{length}"
            );
        }
        for at in 0..end {
            for bit in 0..8 {
                let mut damaged = whole.clone();
                damaged[at] ^= 1 << bit;
                let _ = Bundle::parse(&damaged);
            }
        }
    }
}
