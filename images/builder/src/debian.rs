//! The source of Debian packages: apt, which checks the archive's signature, so that a digest that
//! apt prints is Debian's.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::plan::{PackageFile, sha256};
use crate::{Error, package};

/// Finds packages and gets their bytes.
pub trait Source {
    /// The newest versions of packages, by name.
    ///
    /// # Errors
    /// A package does not exist, or the archive cannot be reached.
    fn find(&mut self, names: &[&str]) -> Result<BTreeMap<String, PackageFile>, Error>;

    /// The bytes of a package, checked against its digest.
    ///
    /// # Errors
    /// The package cannot be downloaded, or has another digest.
    fn get(&mut self, package: &PackageFile) -> Result<Vec<u8>, Error>;
}

/// `apt-get` of this machine, with a cache of earlier downloads.
#[derive(Debug)]
pub struct Apt {
    cache: PathBuf,
}

impl Apt {
    /// Uses this cache folder, which is made when it is needed.
    pub fn new(cache: impl Into<PathBuf>) -> Self {
        Self {
            cache: cache.into(),
        }
    }

    fn cached(&self, package: &PackageFile) -> Result<Option<Vec<u8>>, Error> {
        let path = self.cache.join(&package.file);
        match fs::read(&path) {
            Ok(bytes) if sha256(&bytes) == package.sha256 => Ok(Some(bytes)),
            // The file was cut off while it was written: download it again.
            Ok(_) => Ok(None),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::file(path)(error)),
        }
    }
}

impl Source for Apt {
    fn find(&mut self, names: &[&str]) -> Result<BTreeMap<String, PackageFile>, Error> {
        // An empty folder, because apt prints nothing about a file that lies there already. One
        // call for all packages, because apt reads its lists each time.
        let folder = tempfile::tempdir().map_err(Error::file("a temporary folder"))?;
        let told = run(folder.path(), &[&["--print-uris"], names].concat())?;
        let found = names.iter().map(|name| {
            let package = parse(name, &told).ok_or_else(|| Error::Tool {
                command: format!("apt-get download --print-uris {name}"),
                message: format!("expected a file with its SHA-256 digest, got {told:?}"),
            })?;
            Ok(((*name).to_owned(), package))
        });
        found.collect()
    }

    fn get(&mut self, package: &PackageFile) -> Result<Vec<u8>, Error> {
        if let Some(bytes) = self.cached(package)? {
            return Ok(bytes);
        }
        fs::create_dir_all(&self.cache).map_err(Error::file(&self.cache))?;
        // Each download has a folder of its own, so that two builds at a time do not write into one
        // file.
        let folder = tempfile::tempdir_in(&self.cache).map_err(Error::file(&self.cache))?;
        run(
            folder.path(),
            &[&format!("{}={}", package.name, package.version)],
        )?;
        let path = folder.path().join(&package.file);
        let bytes = fs::read(&path).map_err(Error::file(&path))?;
        package.check(&bytes)?;
        let kept = self.cache.join(&package.file);
        fs::rename(&path, &kept).map_err(Error::file(kept))?;
        Ok(bytes)
    }
}

/// Runs `apt-get download`, which writes files into its working folder.
fn run(folder: &Path, arguments: &[&str]) -> Result<String, Error> {
    let command = format!("apt-get download {}", arguments.join(" "));
    let failed = |message: String| Error::Tool {
        command: command.clone(),
        message,
    };
    let output = Command::new("apt-get")
        .args(["download", "-qq", "-o", "APT::Sandbox::User=root"])
        .args(arguments)
        .current_dir(folder)
        .env("LC_ALL", "C")
        .output()
        .map_err(|error| {
            failed(format!(
                "{error}; images are made of Debian packages, which `apt-get` of Debian or Ubuntu downloads"
            ))
        })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(failed(said.trim().replace('\n', "; ")))
}

/// Parses the line of a package in apt's output: `'ADDRESS' FILE SIZE SHA256:DIGEST`.
fn parse(name: &str, told: &str) -> Option<PackageFile> {
    let of_package = |line: &str| {
        let mut words = line.strip_prefix('\'')?.split_whitespace().skip(1);
        let (file, _size, digest) = (words.next()?, words.next()?, words.next()?);
        let sha256 = digest.strip_prefix("SHA256:")?.to_owned();
        let (of, rest) = file.split_once('_')?;
        let (version, _architecture) = rest.strip_suffix(".deb")?.rsplit_once('_')?;
        let is_plain = !file.contains('/') && sha256.len() == 64;
        (of == name && is_plain).then(|| PackageFile {
            name: name.to_owned(),
            version: version.replace("%3a", ":"),
            file: file.to_owned(),
            sha256,
        })
    };
    told.lines().find_map(of_package)
}

/// The kernel package on which a package without files depends.
pub(crate) fn depends_on_kernel(bytes: &[u8], file: &str) -> Result<String, Error> {
    let control = package::control(bytes, file)?;
    let depends = control
        .lines()
        .find_map(|line| line.strip_prefix("Depends:"))
        .unwrap_or_default();
    let mut named = depends
        .split([',', '|'])
        .filter_map(|word| word.split_whitespace().next());
    let kernel = named.find(|name| name.starts_with("linux-image-"));
    kernel.map(str::to_owned).ok_or_else(|| Error::Package {
        name: file.to_owned(),
        message: format!("expected a dependency on a kernel, got {depends:?}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_apt_prints_is_read() {
        let digest = "ab".repeat(32);
        let line =
            format!("'file:/a/b.deb' libc6_1%3a2.36-9+deb12u1_amd64.deb 27 SHA256:{digest}\n");
        let found = parse("libc6", &line).unwrap();
        assert_eq!(found.version, "1:2.36-9+deb12u1");
        assert_eq!(found.file, "libc6_1%3a2.36-9+deb12u1_amd64.deb");
        for odd in [
            String::new(),
            line.replace("SHA256:", "MD5Sum:"),
            line.replace("libc6_", "../libc6_"),
            line.replace("libc6_", "other_"),
            line.replace(&digest, "ab"),
        ] {
            assert_eq!(parse("libc6", &odd), None, "{odd}");
        }
    }
}
