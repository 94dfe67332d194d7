//! Certificates that are renewed while they are served: their files are checked periodically, and
//! on request.
//!
//! A pair of files that cannot be served is refused, with a log record for each change, and the
//! earlier pair stays in use.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use casemate_channel::ControlError;
use casemate_wire::control::gateway::{
    Certificate, CertificateFiles, FromGateway, MAX_CERTIFICATE_TEXT_BYTES, MAX_CERTIFICATES,
};
use parking_lot::Mutex;
use rustls::sign::CertifiedKey;
use tokio::sync::Notify;

use crate::expiry;
use crate::start::Supervisor;
use crate::tls::{self, Certificates};

/// Period at which the files are checked; a check costs two system calls a pair.
const LOOK_PERIOD: Duration = Duration::from_secs(10);

/// The files of the certificates that are served.
#[derive(Debug)]
pub struct Renewal {
    certificates: Arc<Certificates>,
    files: Vec<CertificateFiles>,
    seen: Mutex<Vec<Seen>>,
    asked: Notify,
}

/// The last state of a pair of files.
#[derive(Debug, Clone, Default)]
struct Seen {
    stamps: [Option<Stamp>; 2],
    refused: Option<String>,
}

/// The facts by which a changed file is recognised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    bytes: u64,
    modified_ns: i128,
}

impl Stamp {
    fn of(path: &str) -> Option<Self> {
        let found = std::fs::metadata(path).ok()?;
        Some(Self {
            inode: found.ino(),
            bytes: found.len(),
            modified_ns: i128::from(found.mtime()) * 1_000_000_000 + i128::from(found.mtime_nsec()),
        })
    }
}

fn stamps(files: &CertificateFiles) -> [Option<Stamp>; 2] {
    [Stamp::of(&files.chain), Stamp::of(&files.key)]
}

/// The folders of the files, and those that their links lead to: the folders that the sandbox
/// leaves readable.
pub fn folders(files: &[CertificateFiles]) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    for path in files.iter().flat_map(|files| [&files.chain, &files.key]) {
        let path = Path::new(path);
        let folder = path.parent().and_then(|folder| folder.canonicalize().ok());
        let target = path.canonicalize().ok();
        let target = target.as_deref().and_then(Path::parent).map(Path::to_owned);
        for folder in folder.into_iter().chain(target) {
            if folder == Path::new("/") {
                tracing::warn!(
                    path = %path.display(),
                    "a certificate in the root folder is not renewed while it is served; give it a folder of its own"
                );
            } else if !folders.contains(&folder) {
                folders.push(folder);
            }
        }
    }
    folders
}

impl Renewal {
    /// Starts with these certificates, which were just read from these files.
    pub fn new(certificates: Arc<Certificates>, files: Vec<CertificateFiles>) -> Arc<Self> {
        let seen = files.iter().map(|files| Seen {
            stamps: stamps(files),
            refused: None,
        });
        Arc::new(Self {
            certificates,
            seen: Mutex::new(seen.collect()),
            files,
            asked: Notify::new(),
        })
    }

    /// Requests a check of the files now.
    pub fn ask(&self) {
        self.asked.notify_one();
    }

    /// Checks the files periodically, takes new ones, and reports the served certificates to the
    /// supervisor; never ends.
    ///
    /// # Errors
    /// The control channel failed.
    pub async fn keep(self: Arc<Self>, supervisor: Arc<Supervisor>) -> Result<(), ControlError> {
        let mut told = None;
        let mut is_asked = false;
        loop {
            let this = self.clone();
            // A disk may be slow; callers do not wait for it.
            let looked = tokio::task::spawn_blocking(move || this.look(is_asked)).await;
            if let Err(error) = looked {
                tracing::error!(%error, "the certificate files could not be checked for changes");
            }
            let report = self.report();
            if told.as_ref() != Some(&report) {
                let message = FromGateway::Certificates(report.clone());
                supervisor.send(&message, &[]).await?;
                told = Some(report);
            }
            is_asked = tokio::time::timeout(LOOK_PERIOD, self.asked.notified())
                .await
                .is_ok();
        }
    }

    /// Takes the pairs whose files have changed, if they can be served. `asked`: retries unchanged
    /// pairs too.
    fn look(&self, asked: bool) {
        let mut seen = self.seen.lock();
        for (place, (files, seen)) in self.files.iter().zip(seen.iter_mut()).enumerate() {
            // Stamps are taken before the files are read, so that a change in between causes
            // another read.
            let now = stamps(files);
            if now == seen.stamps && !asked {
                continue;
            }
            seen.stamps = now;
            seen.refused = None;
            let Some(served) = self.certificates.get(place) else {
                continue;
            };
            match tls::read(files)
                .map_err(|error| error.to_string())
                .and_then(|key| must_last(&served, key))
            {
                Ok(key) if key.cert == served.cert => {}
                Ok(key) => {
                    tracing::info!(
                        chain = files.chain,
                        expires = expires(&key),
                        "renewed certificate is served from now on"
                    );
                    self.certificates.replace(place, key);
                }
                Err(error) => {
                    tracing::error!(
                        chain = files.chain,
                        key = files.key,
                        expires = expires(&served),
                        error,
                        "renewed certificate refused; the earlier certificate stays in use until the files change again"
                    );
                    seen.refused = Some(error);
                }
            }
        }
    }

    /// The served certificates, ordered by expiry.
    fn report(&self) -> Vec<Certificate> {
        let seen = self.seen.lock();
        let mut report: Vec<_> = self
            .files
            .iter()
            .zip(seen.iter())
            .enumerate()
            .map(|(place, (files, seen))| Certificate {
                chain: cut(&files.chain),
                expires: self.certificates.get(place).and_then(|key| expires(&key)),
                refused: seen.refused.as_deref().map(cut),
            })
            .collect();
        report.sort_by_key(|one| one.expires);
        report.truncate(MAX_CERTIFICATES);
        report
    }
}

fn expires(key: &CertifiedKey) -> Option<u64> {
    expiry::not_after(key.cert.first()?)
}

/// An expired certificate does not replace one that is valid.
fn must_last(served: &CertifiedKey, key: CertifiedKey) -> Result<CertifiedKey, String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.map_or(0, |now| now.as_secs());
    let is_over = |key: &CertifiedKey| expires(key).is_some_and(|expires| expires <= now);
    if is_over(&key) && !is_over(served) {
        return Err(format!(
            "expected a certificate that has not expired; it expired at {}, and this machine's clock shows {now} (seconds since 1970)",
            expires(&key).unwrap_or_default()
        ));
    }
    Ok(key)
}

fn cut(text: &str) -> String {
    text[..text.floor_char_boundary(MAX_CERTIFICATE_TEXT_BYTES)].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    struct Pair {
        folder: tempfile::TempDir,
    }

    /// Makes chain and key of a certificate for `a.test` that expires in this year.
    fn made(year: i32) -> (String, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["a.test".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    }

    impl Pair {
        fn new(year: i32) -> (Self, Arc<Renewal>) {
            let pair = Self {
                folder: tempfile::tempdir().unwrap(),
            };
            let (chain, key) = made(year);
            pair.write("chain.pem", &chain);
            pair.write("key.pem", &key);
            let files = vec![CertificateFiles {
                chain: pair.path("chain.pem"),
                key: pair.path("key.pem"),
            }];
            let certificates = Arc::new(Certificates::read(&files).unwrap());
            (pair, Renewal::new(certificates, files))
        }

        fn path(&self, name: &str) -> String {
            self.folder.path().join(name).to_string_lossy().into_owned()
        }

        fn write(&self, name: &str, text: &str) {
            fs::write(self.path(name), text).unwrap();
        }
    }

    fn year(renewal: &Renewal) -> u64 {
        1970 + renewal.report()[0].expires.unwrap() / 31_556_952
    }

    #[test]
    fn a_renewed_pair_is_served_written_in_place_or_moved_there() {
        let (pair, renewal) = Pair::new(2040);
        renewal.look(false);
        assert_eq!(year(&renewal), 2040);
        let (chain, key) = made(2041);
        pair.write("key.pem", &key);
        pair.write("chain.pem", &chain);
        renewal.look(false);
        assert_eq!(year(&renewal), 2041);
        let (chain, key) = made(2042);
        for (name, text) in [("chain.pem", chain), ("key.pem", key)] {
            pair.write("new", &text);
            fs::rename(pair.path("new"), pair.path(name)).unwrap();
        }
        renewal.look(false);
        assert_eq!(year(&renewal), 2042);
        assert_eq!(renewal.report()[0].refused, None);
    }

    #[test]
    fn a_bad_pair_is_refused_and_the_earlier_one_served_on() {
        let (pair, renewal) = Pair::new(2040);
        let (chain, key) = made(2041);
        let (old_chain, old_key) = made(2020);
        let bad = [
            ("chain.pem", chain.clone(), "expected a chain and its key"),
            (
                "chain.pem",
                chain[..chain.len() / 2].to_owned(),
                "chain.pem",
            ),
            ("chain.pem", String::new(), "found none"),
            ("key.pem", "no key".to_owned(), "key.pem"),
        ];
        for (name, text, why) in bad {
            let before = fs::read_to_string(pair.path(name)).unwrap();
            pair.write(name, &text);
            renewal.look(false);
            let refused = renewal.report()[0].refused.clone().unwrap();
            assert!(refused.contains(why), "{refused}");
            assert!(!refused.contains("PRIVATE"), "{refused}");
            assert_eq!(year(&renewal), 2040, "{why}");
            pair.write(name, &before);
        }
        fs::remove_file(pair.path("key.pem")).unwrap();
        renewal.look(false);
        assert!(renewal.report()[0].refused.is_some());
        pair.write("chain.pem", &old_chain);
        pair.write("key.pem", &old_key);
        renewal.look(false);
        let refused = renewal.report()[0].refused.clone().unwrap();
        assert!(
            refused.contains("expired") && refused.contains("clock"),
            "{refused}"
        );
        assert_eq!(year(&renewal), 2040);
        // The next valid pair is served.
        pair.write("chain.pem", &chain);
        pair.write("key.pem", &key);
        renewal.look(false);
        assert_eq!(
            (year(&renewal), &renewal.report()[0].refused),
            (2041, &None)
        );
    }

    #[test]
    fn the_folders_of_links_and_of_what_they_lead_to_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        for name in ["live", "archive"] {
            fs::create_dir(root.join(name)).unwrap();
        }
        fs::write(root.join("archive/chain1.pem"), "").unwrap();
        let link = root.join("live/chain.pem");
        std::os::unix::fs::symlink("../archive/chain1.pem", &link).unwrap();
        let path = link.to_string_lossy().into_owned();
        let files = [CertificateFiles {
            chain: path.clone(),
            key: path,
        }];
        assert_eq!(folders(&files), [root.join("live"), root.join("archive")]);
    }
}
