//! Image files by digest, in a folder of their own: uploaded in parts, read in pieces, never
//! completely in memory.

use std::collections::BTreeSet;
use std::io::{self, ErrorKind, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use casemate_api::error::code;
use casemate_api::image::{ImagePart, ImageUpload};
use casemate_api::limits::{MAX_IMAGE_BYTES, MAX_IMAGE_PART_BYTES};
use casemate_trust::id::Digest;
use futures_util::{Stream, StreamExt as _};
use serde_json::json;
use tokio::fs::{self, File, OpenOptions};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _, AsyncWriteExt as _, Take};
use tokio::sync::{Mutex, MutexGuard};

use crate::fault::Fault;

/// Suffix of a file that is not complete.
const PART: &str = "part";
/// How long a file stays that no statement names: an interrupted upload can continue within this
/// time.
const UNNAMED_KEPT: Duration = Duration::from_secs(24 * 60 * 60);
/// Largest number of such files; the oldest are removed first. With the largest images they take a
/// GiB.
const MAX_UNNAMED: usize = 4;
/// Read at a time when a file is checked, bytes.
const CHUNK_BYTES: usize = 256 * 1024;

/// The folder of image files, owned by the plane. `put` takes a part, `progress` says how far an
/// upload is, `read` gives a piece; whoever decides on the ground of what is there holds a
/// [`Still`] meanwhile.
#[derive(Debug)]
pub(crate) struct Images {
    folder: PathBuf,
    /// Held by each upload, and while a decision depends on the existing files.
    changing: Mutex<()>,
}

/// While this is held, the folder does not change.
pub(crate) struct Still<'a>(#[expect(dead_code, reason = "held")] MutexGuard<'a, ()>);

impl Images {
    /// Opens the folder, and creates it if it does not exist.
    pub(crate) fn open(folder: &Path) -> io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt as _;
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)?;
        Ok(Self {
            folder: folder.to_owned(),
            changing: Mutex::new(()),
        })
    }

    fn whole(&self, digest: &Digest) -> PathBuf {
        self.folder.join(digest.to_string())
    }

    fn part(&self, digest: &Digest) -> PathBuf {
        self.folder.join(format!("{digest}.{PART}"))
    }

    /// Waits until no upload is in progress, and blocks new ones.
    pub(crate) async fn still(&self) -> Still<'_> {
        Still(self.changing.lock().await)
    }

    /// Size of a complete file.
    pub(crate) async fn size(&self, digest: &Digest) -> Result<Option<u64>, Fault> {
        size(&self.whole(digest)).await
    }

    /// Progress of an upload.
    pub(crate) async fn progress(&self, digest: &Digest) -> Result<ImageUpload, Fault> {
        if let Some(received_bytes) = self.size(digest).await? {
            return Ok(ImageUpload {
                received_bytes,
                whole: true,
            });
        }
        let received = size(&self.part(digest)).await?;
        Ok(ImageUpload {
            received_bytes: received.unwrap_or(0),
            whole: false,
        })
    }

    /// Adds a part. The received bytes of an interrupted upload are kept. With the last byte the
    /// digest is checked; the file is complete and synced when this returns. `named` are the files
    /// that statements name; some of the others are removed.
    pub(crate) async fn put(
        &self,
        digest: &Digest,
        place: ImagePart,
        body: impl Stream<Item = Result<bytes::Bytes, Fault>> + Unpin,
        named: &BTreeSet<Digest>,
    ) -> Result<ImageUpload, Fault> {
        if !(1..=MAX_IMAGE_BYTES).contains(&place.bytes) {
            let message = format!(
                "expected an image of 1 to {MAX_IMAGE_BYTES} bytes, got {}",
                place.bytes
            );
            let details = json!({ "limit_bytes": MAX_IMAGE_BYTES });
            return Err(Fault::new(413, code::TOO_LARGE, message).with(details));
        }
        let _changing = self.changing.lock().await;
        let before = self.progress(digest).await?;
        if before.whole {
            return Ok(before);
        }
        self.sweep(digest, named)
            .await
            .map_err(|error| fault(&error))?;
        if before.received_bytes != place.offset {
            let message = format!(
                "{} bytes of this image are stored: continue from there, not from {}",
                before.received_bytes, place.offset
            );
            let details = json!({ "received_bytes": before.received_bytes });
            return Err(Fault::new(409, code::CONFLICT, message).with(details));
        }
        let received_bytes = match self.append(digest, place, body).await {
            // The bytes are removed, so that others can use the space: the next upload starts
            // again.
            Err(full) if full.code() == code::STORAGE_FULL => {
                fs::remove_file(self.part(digest)).await.ok();
                return Err(full);
            }
            received => received?,
        };
        let whole = received_bytes == place.bytes;
        if whole {
            self.finish(digest).await?;
        }
        Ok(ImageUpload {
            received_bytes,
            whole,
        })
    }

    async fn append(
        &self,
        digest: &Digest,
        place: ImagePart,
        mut body: impl Stream<Item = Result<bytes::Bytes, Fault>> + Unpin,
    ) -> Result<u64, Fault> {
        let failed = |error: io::Error| fault(&error);
        let mut options = OpenOptions::new();
        options.create(true).append(true).mode(0o600);
        let mut file = options.open(self.part(digest)).await.map_err(failed)?;
        let most = (place.bytes - place.offset).min(MAX_IMAGE_PART_BYTES);
        let mut received = 0;
        let result = async {
            while let Some(chunk) = body.next().await {
                let chunk = chunk?;
                if received + chunk.len() as u64 > most {
                    let message = format!("expected at most {most} bytes here");
                    let details = json!({ "limit_bytes": most });
                    return Err(Fault::new(413, code::TOO_LARGE, message).with(details));
                }
                file.write_all(&chunk).await.map_err(failed)?;
                received += chunk.len() as u64;
            }
            Ok(())
        };
        let result = result.await;
        file.flush().await.map_err(failed)?;
        result.map(|()| place.offset + received)
    }

    /// Checks a file that has all its bytes, and renames it.
    async fn finish(&self, digest: &Digest) -> Result<(), Fault> {
        let (part, whole) = (self.part(digest), self.whole(digest));
        let (folder, wanted) = (self.folder.clone(), *digest);
        let checked = tokio::task::spawn_blocking(move || {
            let found = hash(&part)?;
            if found == wanted {
                std::fs::File::open(&part)?.sync_all()?;
                std::fs::rename(&part, &whole)?;
                casemate_durable::sync_folder(&folder)?;
            } else {
                std::fs::remove_file(&part)?;
            }
            Ok(found)
        });
        let found = checked
            .await
            .map_err(io::Error::other)
            .flatten()
            .map_err(|error| fault(&error))?;
        if found == *digest {
            return Ok(());
        }
        let message =
            format!("the image's digest is {found}, not {digest}; its bytes were removed");
        Err(Fault::new(422, code::DIGEST_MISMATCH, message).with(json!({ "digest": found })))
    }

    /// Removes files that no statement names: old ones, and the oldest of too many.
    async fn sweep(&self, coming: &Digest, named: &BTreeSet<Digest>) -> io::Result<()> {
        let mut listed = fs::read_dir(&self.folder).await?;
        let mut unnamed = Vec::new();
        while let Some(entry) = listed.next_entry().await? {
            let name = entry.file_name();
            let digest = name.to_string_lossy().split('.').next().map(str::parse);
            if let Some(Ok(digest)) = digest
                && digest != *coming
                && !named.contains(&digest)
            {
                let changed = entry.metadata().await?.modified()?;
                unnamed.push((changed, entry.path()));
            }
        }
        unnamed.sort();
        let too_many = (unnamed.len() + 1).saturating_sub(MAX_UNNAMED);
        for (number, (changed, path)) in unnamed.iter().enumerate() {
            let age = SystemTime::now().duration_since(*changed);
            if number < too_many || age.is_ok_and(|age| age > UNNAMED_KEPT) {
                fs::remove_file(path).await?;
            }
        }
        Ok(())
    }

    /// A piece of a file: its end, and its bytes. It is shorter at the end of the file. A request
    /// that is reading a removed file can read it to its end.
    pub(crate) async fn read(
        &self,
        digest: &Digest,
        offset: u64,
        bytes: u32,
    ) -> Result<Option<(u64, Take<File>)>, Fault> {
        let failed = |error: io::Error| fault(&error);
        let mut file = match File::open(self.whole(digest)).await {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let size = file.metadata().await.map_err(failed)?.len();
        if offset >= size {
            return Ok(None);
        }
        file.seek(SeekFrom::Start(offset)).await.map_err(failed)?;
        let end = size.min(offset + u64::from(bytes));
        Ok(Some((end, file.take(end - offset))))
    }
}

async fn size(path: &Path) -> Result<Option<u64>, Fault> {
    match fs::metadata(path).await {
        Ok(found) => Ok(Some(found.len())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(fault(&error)),
    }
}

fn hash(path: &Path) -> io::Result<Digest> {
    use std::io::Read as _;
    let mut file = std::fs::File::open(path)?;
    let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let length = file.read(&mut chunk)?;
        if length == 0 {
            break;
        }
        hash.update(&chunk[..length]);
    }
    let mut digest = Digest([0; 32]);
    digest.0.copy_from_slice(hash.finish().as_ref());
    Ok(digest)
}

fn fault(error: &io::Error) -> Fault {
    tracing::error!(%error, "the image store failed");
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Fault::storage_full(),
        _ => Fault::storage_failed(),
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;

    const CONTENT: &[u8] = b"an image of a machine";

    fn place(offset: usize) -> ImagePart {
        ImagePart {
            offset: offset as u64,
            bytes: CONTENT.len() as u64,
        }
    }

    async fn put(
        images: &Images,
        digest: &Digest,
        place: ImagePart,
        chunks: Vec<Result<bytes::Bytes, Fault>>,
    ) -> Result<ImageUpload, Fault> {
        let body = stream::iter(chunks);
        images.put(digest, place, body, &BTreeSet::new()).await
    }

    fn chunk(bytes: &'static [u8]) -> Result<bytes::Bytes, Fault> {
        Ok(bytes::Bytes::from_static(bytes))
    }

    #[tokio::test]
    async fn an_interrupted_upload_continues_and_is_read_in_pieces() {
        let folder = tempfile::tempdir().unwrap();
        let images = Images::open(folder.path()).unwrap();
        let digest = Digest::of(CONTENT);
        let cut = vec![chunk(&CONTENT[..5]), Err(Fault::bad_request("cut off"))];
        put(&images, &digest, place(0), cut).await.unwrap_err();
        let images = Images::open(folder.path()).unwrap();
        let progress = images.progress(&digest).await.unwrap();
        assert_eq!((progress.received_bytes, progress.whole), (5, false));
        let wrong = put(&images, &digest, place(0), vec![chunk(CONTENT)]).await;
        let wrong = wrong.unwrap_err();
        assert_eq!((wrong.status, wrong.code()), (409, code::CONFLICT));
        assert!(images.read(&digest, 0, 5).await.unwrap().is_none());
        let more = put(&images, &digest, place(5), vec![chunk(CONTENT)]).await;
        assert_eq!(more.unwrap_err().status, 413);
        let rest = vec![chunk(&CONTENT[5..9]), chunk(&CONTENT[9..])];
        let done = put(&images, &digest, place(5), rest).await.unwrap();
        assert!(done.whole);
        // A repeated part is not an error, wherever it begins.
        assert!(put(&images, &digest, place(0), vec![]).await.unwrap().whole);
        let mut read = Vec::new();
        for offset in (0..CONTENT.len() as u64).step_by(8) {
            let (end, mut piece) = images.read(&digest, offset, 8).await.unwrap().unwrap();
            assert_eq!(end, (offset + 8).min(CONTENT.len() as u64));
            piece.read_to_end(&mut read).await.unwrap();
        }
        assert_eq!(read, CONTENT);
        let beyond = images.read(&digest, CONTENT.len() as u64, 1).await;
        assert!(beyond.unwrap().is_none());
    }

    #[tokio::test]
    async fn other_bytes_and_too_many_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let images = Images::open(folder.path()).unwrap();
        let digest = Digest::of(b"other");
        let wrong = put(&images, &digest, place(0), vec![chunk(CONTENT)]).await;
        assert_eq!(wrong.unwrap_err().code(), code::DIGEST_MISMATCH);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        let large = ImagePart {
            offset: 0,
            bytes: MAX_IMAGE_BYTES + 1,
        };
        let refused = put(&images, &digest, large, vec![]).await.unwrap_err();
        assert_eq!(refused.code(), code::TOO_LARGE);
    }

    #[tokio::test]
    async fn unnamed_images_are_limited_and_named_ones_stay() {
        let folder = tempfile::tempdir().unwrap();
        let images = Images::open(folder.path()).unwrap();
        let digests: Vec<_> = (0..8).map(|number: u8| Digest::of(&[number])).collect();
        let named = BTreeSet::from([digests[0]]);
        for (number, digest) in digests.iter().enumerate() {
            let place = ImagePart {
                offset: 0,
                bytes: 1,
            };
            let body = stream::iter([Ok(bytes::Bytes::from(vec![number as u8]))]);
            images.put(digest, place, body, &named).await.unwrap();
        }
        assert!(images.size(&digests[0]).await.unwrap().is_some());
        assert!(images.size(&digests[7]).await.unwrap().is_some());
        let count = std::fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(count, MAX_UNNAMED + 1);
    }
}
