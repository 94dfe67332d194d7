//! Reading a Debian package (`deb(5)`): an `ar` archive of two compressed `tar` archives.

use std::collections::BTreeMap;
use std::io::{self, Read};

use crate::Error;

/// The largest kernel package unpacks to 400 MB.
const MAX_UNPACKED_BYTES: u64 = 1024 * 1024 * 1024;
/// Most files of a package; the largest package has fewer.
const MAX_FILES: usize = 50_000;

/// A file or link of a package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Packed {
    File(Vec<u8>),
    /// A link, with its target as written.
    Link(String),
}

/// The files that a package would install, by path without a leading slash.
#[derive(Debug)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) files: BTreeMap<String, Packed>,
}

impl Package {
    pub(crate) fn read(bytes: &[u8], name: &str) -> Result<Self, Error> {
        let name = name.to_owned();
        let files = unpack(bytes, &name, "data.tar")?;
        Ok(Self { name, files })
    }

    /// The file at a path, followed through links within the package.
    pub(crate) fn file(&self, path: &str) -> Result<&[u8], Error> {
        let mut at = path.to_owned();
        for _ in 0..8 {
            match self.files.get(&at) {
                Some(Packed::File(bytes)) => return Ok(bytes),
                Some(Packed::Link(target)) => at = resolve(&at, target),
                None => break,
            }
        }
        Err(Error::NotInPackage {
            package: self.name.clone(),
            path: path.to_owned(),
        })
    }
}

/// The `control` file of a package.
pub(crate) fn control(bytes: &[u8], name: &str) -> Result<String, Error> {
    let files = unpack(bytes, name, "control.tar")?;
    match files.get("control") {
        Some(Packed::File(bytes)) => Ok(String::from_utf8_lossy(bytes).into_owned()),
        _ => Err(Error::NotInPackage {
            package: name.to_owned(),
            path: "control".into(),
        }),
    }
}

fn unpack(bytes: &[u8], name: &str, member: &str) -> Result<BTreeMap<String, Packed>, Error> {
    let broken = |message: String| Error::Package {
        name: name.to_owned(),
        message,
    };
    let mut archive = ar::Archive::new(bytes);
    while let Some(entry) = archive.next_entry() {
        let mut entry = entry.map_err(|error| broken(error.to_string()))?;
        let identifier = String::from_utf8_lossy(entry.header().identifier()).into_owned();
        let Some(kind) = identifier.strip_prefix(member) else {
            continue;
        };
        let mut packed = Vec::new();
        entry
            .read_to_end(&mut packed)
            .map_err(|error| broken(error.to_string()))?;
        let unpacked: Box<dyn Read + '_> = match kind {
            ".xz" => Box::new(lzma_rust2::XzReader::new(&packed[..], true)),
            ".zst" => Box::new(
                zstd::Decoder::new(&packed[..]).map_err(|error| broken(error.to_string()))?,
            ),
            "" => Box::new(&packed[..]),
            other => {
                return Err(broken(format!(
                    "expected {member} in xz or zstd, got {other}"
                )));
            }
        };
        return files(unpacked.take(MAX_UNPACKED_BYTES)).map_err(|error| broken(error.to_string()));
    }
    Err(broken(format!("expected {member}, found none")))
}

fn files(unpacked: impl Read) -> io::Result<BTreeMap<String, Packed>> {
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(unpacked).entries()? {
        let mut entry = entry?;
        if files.len() == MAX_FILES {
            return Err(io::Error::other(format!("over {MAX_FILES} files")));
        }
        let path = entry.path()?.to_string_lossy().into_owned();
        let path = path
            .trim_start_matches("./")
            .trim_end_matches('/')
            .to_owned();
        if path.split('/').any(|part| part == "..") || path.starts_with('/') {
            return Err(io::Error::other(format!(
                "a path that leads out of the package: {path}"
            )));
        }
        let target = entry
            .link_name()?
            .map(|target| target.to_string_lossy().into_owned());
        let packed = match (entry.header().entry_type(), target) {
            (tar::EntryType::Regular, _) => {
                let mut bytes = Vec::new();
                entry.read_to_end(&mut bytes)?;
                Packed::File(bytes)
            }
            (tar::EntryType::Symlink, Some(target)) => Packed::Link(target),
            // A hard link's target is relative to the archive's root, unlike that of a symbolic
            // link.
            (tar::EntryType::Link, Some(target)) => {
                Packed::Link(format!("/{}", target.trim_start_matches("./")))
            }
            _ => continue,
        };
        files.insert(path, packed);
    }
    Ok(files)
}

/// The target of a link, relative to the root or to the link's folder.
fn resolve(link: &str, target: &str) -> String {
    let folder = link.rsplit_once('/').map_or("", |(folder, _)| folder);
    let joined = match target.strip_prefix('/') {
        Some(absolute) => absolute.to_owned(),
        None => format!("{folder}/{target}"),
    };
    let mut parts: Vec<&str> = Vec::new();
    for part in joined.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Builds a package of these files; a content that begins with `->` is a link.
    pub(crate) fn deb(control: &str, files: &[(&str, &[u8])]) -> Vec<u8> {
        let pack = |files: &[(&str, &[u8])]| {
            let mut tar = tar::Builder::new(Vec::new());
            for (path, bytes) in files {
                let mut header = tar::Header::new_gnu();
                header.set_mode(0o644);
                if let Some(target) = bytes.strip_prefix(b"->") {
                    header.set_entry_type(tar::EntryType::Symlink);
                    header.set_size(0);
                    let target = std::str::from_utf8(target).unwrap();
                    tar.append_link(&mut header, path, target).unwrap();
                } else {
                    header.set_size(bytes.len() as u64);
                    tar.append_data(&mut header, path, *bytes).unwrap();
                }
            }
            zstd::encode_all(&tar.into_inner().unwrap()[..], 1).unwrap()
        };
        let mut archive = ar::Builder::new(Vec::new());
        let members = [
            ("debian-binary", b"2.0\n".to_vec()),
            ("control.tar.zst", pack(&[("control", control.as_bytes())])),
            ("data.tar.zst", pack(files)),
        ];
        for (name, bytes) in members {
            let header = ar::Header::new(name.as_bytes().to_vec(), bytes.len() as u64);
            archive.append(&header, &bytes[..]).unwrap();
        }
        archive.into_inner().unwrap()
    }

    #[test]
    fn files_are_found_through_links() {
        let bytes = deb(
            "Package: a\nDepends: b\n",
            &[
                ("lib/x/liba.so.1.2", b"ELF"),
                ("lib/x/liba.so.1", b"->liba.so.1.2"),
                ("usr/liba.so", b"->../lib/./x/liba.so.1"),
                ("abs", b"->/usr/liba.so"),
                ("loop", b"->loop"),
            ],
        );
        let package = Package::read(&bytes, "a.deb").unwrap();
        for path in ["lib/x/liba.so.1.2", "lib/x/liba.so.1", "usr/liba.so", "abs"] {
            assert_eq!(package.file(path).unwrap(), b"ELF", "{path}");
        }
        for path in ["loop", "nothing"] {
            let error = package.file(path).unwrap_err();
            assert!(error.to_string().contains(path));
        }
        assert!(control(&bytes, "a.deb").unwrap().contains("Depends: b"));
    }

    #[test]
    fn what_is_no_package_is_an_error() {
        let whole = deb("", &[("a", &[7; 5000])]);
        for bytes in [&b""[..], b"!<arch>\n", &whole[..whole.len() - 30], b"PK"] {
            let error = Package::read(bytes, "odd.deb").unwrap_err();
            assert!(error.to_string().contains("odd.deb"), "{error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_do_harm(at in 0_usize..600, to: u8) {
            let mut bytes = deb("Package: a\n", &[("a", b"b"), ("c", b"->a")]);
            let at = at % bytes.len();
            bytes[at] = to;
            let _ = Package::read(&bytes, "odd.deb");
            let _ = control(&bytes, "odd.deb");
        }
    }
}
