//! The machine's next image: its file on the disk, and what moves between there, the control plane and the state that decides.

use std::fs;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use casemate_trust::id::Digest;
use casemate_trust::image::ImageVersion;
use casemate_wire::control::vault::Image as AcceptedImage;
use ring::digest::{Context, SHA256};

use super::push::Say;
use super::{Happening, Shell};
use crate::state::image::{Action, Done, Image, Job, MARGIN_BYTES};

/// Folder below the supervisor's state: `DIGEST.part` while it comes, `DIGEST` once it is whole and right.
const FOLDER: &str = "images";
/// Of the folder and of a whole file: init reads them, and nothing in them is secret.
const FOLDER_MODE: u32 = 0o755;
const FILE_MODE: u32 = 0o644;
/// Read at a time when a file is checked, bytes.
const CHUNK_BYTES: usize = 256 * 1024;
/// Most of init's file that is read, bytes: it has to fit into a status.
const MAX_MACHINE_BYTES: u64 = 16 * 1024;

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct Folder {
    path: PathBuf,
}

impl Folder {
    pub(crate) fn below(state: &Path) -> Self {
        Self {
            path: state.join(FOLDER),
        }
    }

    /// Does a job; it may take as long as the disk does.
    pub(crate) fn work(&self, job: Job) -> Done {
        let done = match &job {
            Job::Look { keep } => self.look(keep.as_ref()),
            Job::Write {
                image,
                offset,
                bytes,
            } => self.write(image, *offset, bytes),
            Job::Finish { image } => self.finish(image),
        };
        done.unwrap_or_else(|error| Done::Failed {
            message: format!("the folder {} cannot be used: {error}", self.path.display()),
        })
    }

    fn whole(&self, image: &Image) -> PathBuf {
        self.path.join(image.digest.to_string())
    }

    fn part(&self, image: &Image) -> PathBuf {
        self.path.join(format!("{}.part", image.digest))
    }

    fn look(&self, keep: Option<&Image>) -> io::Result<Done> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(FOLDER_MODE)
            .create(&self.path)?;
        fs::set_permissions(&self.path, fs::Permissions::from_mode(FOLDER_MODE))?;
        let kept = keep.map(|image| [self.whole(image), self.part(image)]);
        for entry in fs::read_dir(&self.path)? {
            let path = entry?.path();
            if kept.as_ref().is_none_or(|kept| !kept.contains(&path)) {
                fs::remove_file(path)?;
            }
        }
        let looked = |fetched, is_whole| {
            let room = self.room()?;
            Ok(Done::Looked {
                fetched,
                is_whole,
                room,
            })
        };
        let Some(image) = keep else {
            return looked(0, false);
        };
        let size = |path: &Path| fs::symlink_metadata(path).map_or(0, |found| found.len());
        if size(&self.whole(image)) == image.bytes {
            remove_if_there(&self.part(image))?;
            return looked(image.bytes, true);
        }
        remove_if_there(&self.whole(image))?;
        let part = self.part(image);
        if size(&part) > image.bytes || self.room()? < MARGIN_BYTES {
            remove_if_there(&part)?;
        }
        looked(size(&part), false)
    }

    /// Bytes that are free on the state partition.
    fn room(&self) -> io::Result<u64> {
        let found = rustix::fs::fstatvfs(fs::File::open(&self.path)?)?;
        Ok(found.f_bavail.saturating_mul(found.f_frsize))
    }

    fn write(&self, image: &Image, offset: u64, bytes: &[u8]) -> io::Result<Done> {
        let mut file = fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(self.part(image))?;
        // Half of an earlier write, which a full disk cut short, is written again.
        file.set_len(offset)?;
        file.seek(SeekFrom::Start(offset))?;
        file.write_all(bytes)?;
        // What counts as fetched is there after a power cut too, and no image's worth of memory waits to be written.
        file.sync_data()?;
        let (fetched, room) = (offset + bytes.len() as u64, self.room()?);
        Ok(Done::Written { fetched, room })
    }

    fn finish(&self, image: &Image) -> io::Result<Done> {
        let (part, whole) = (self.part(image), self.whole(image));
        let mut file = fs::File::open(&part)?;
        let (mut hash, mut left) = (Context::new(&SHA256), image.bytes);
        let mut chunk = vec![0; CHUNK_BYTES];
        while left > 0 {
            let most = usize::try_from(left).map_or(CHUNK_BYTES, |left| left.min(CHUNK_BYTES));
            let length = file.read(&mut chunk[..most])?;
            if length == 0 {
                break;
            }
            hash.update(&chunk[..length]);
            left -= length as u64;
        }
        let is_right = hash.finish().as_ref() == image.digest.0;
        if is_right {
            fs::set_permissions(&part, fs::Permissions::from_mode(FILE_MODE))?;
            file.sync_all()?;
            fs::rename(&part, &whole)?;
        } else {
            fs::remove_file(&part)?;
        }
        fs::File::open(&self.path)?.sync_all()?;
        Ok(Done::Finished { is_right })
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// What init's file says now.
fn read_machine(path: &Path) -> Result<Vec<u8>, String> {
    let unreadable = |error: io::Error| format!("{}: {error}", path.display());
    let mut bytes = Vec::new();
    let file = fs::File::open(path).map_err(unreadable)?;
    let mut file = file.take(MAX_MACHINE_BYTES + 1);
    file.read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > MAX_MACHINE_BYTES {
        return Err(format!(
            "{}: expected at most {MAX_MACHINE_BYTES} bytes",
            path.display()
        ));
    }
    Ok(bytes)
}

impl Shell {
    /// The vault has accepted an image.
    pub(super) fn image_accepted(&mut self, image: &AcceptedImage) {
        let Some(version) = ImageVersion::from_u64(image.version) else {
            return;
        };
        let image = Image {
            version,
            digest: Digest(image.digest),
            bytes: image.bytes,
        };
        self.image.accepted(image);
        self.fetch_image();
    }

    /// Init may have written something else.
    pub(super) fn look_at_machine(&mut self) {
        if let Some(path) = &self.config.machine {
            let read = read_machine(path);
            self.image.machine(read.as_deref().map_err(Clone::clone));
        }
        self.fetch_image();
    }

    pub(super) fn image_piece(&mut self, digest: &Digest, offset: u64, bytes: Vec<u8>) {
        let now_ms = self.now_ms();
        if let Some(job) = self.image.piece(digest, offset, bytes, now_ms) {
            self.work_on_image(job);
        }
        self.fetch_image();
    }

    pub(super) fn image_done(&mut self, done: Done) {
        match &done {
            Done::Finished { is_right: true } => {
                tracing::info!("the machine's next image is here and has its digest");
            }
            Done::Finished { is_right: false } => tracing::warn!(
                "an image came with another digest and was removed; it is fetched again after a pause"
            ),
            Done::Failed { message } => tracing::error!(message, "an image could not be stored"),
            _ => {}
        }
        let now_ms = self.now_ms();
        self.image.done(done, now_ms);
        self.fetch_image();
    }

    /// Does what is next, if anything.
    pub(super) fn fetch_image(&mut self) {
        match self.image.next(self.now_ms()) {
            Some(Action::Disk(job)) => self.work_on_image(job),
            Some(Action::Ask {
                digest,
                offset,
                bytes,
            }) => self.say(Say::FetchImage {
                digest,
                offset,
                bytes,
            }),
            None => {}
        }
    }

    /// In a thread of its own: an image takes seconds to check, and the supervisor never waits.
    fn work_on_image(&self, job: Job) {
        let (folder, happenings) = (self.images.clone(), self.happenings.clone());
        tokio::spawn(async move {
            let done = tokio::task::spawn_blocking(move || folder.work(job)).await;
            let done = done.unwrap_or_else(|error| Done::Failed {
                message: error.to_string(),
            });
            // The main loop is gone: so are we.
            let _sent = happenings.send(Happening::Image(done)).await;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTENT: &[u8] = b"an image of some bytes";

    fn image(version: &str, content: &[u8]) -> Image {
        Image {
            version: version.parse().unwrap(),
            digest: Digest::of(content),
            bytes: content.len() as u64,
        }
    }

    /// Bytes that are there then.
    fn write(folder: &Folder, image: &Image, offset: u64, bytes: &[u8]) -> u64 {
        let bytes = bytes.to_vec();
        let done = folder.work(Job::Write {
            image: *image,
            offset,
            bytes,
        });
        match done {
            Done::Written { fetched, room } if room > 0 => fetched,
            done => panic!("{done:?}"),
        }
    }

    fn look(folder: &Folder, keep: Option<Image>) -> (u64, bool) {
        match folder.work(Job::Look { keep }) {
            Done::Looked {
                fetched,
                is_whole,
                room,
            } => {
                assert!(room > 0);
                (fetched, is_whole)
            }
            done => panic!("{done:?}"),
        }
    }

    fn names(folder: &Folder) -> Vec<String> {
        let listed = fs::read_dir(&folder.path).unwrap().map(Result::unwrap);
        listed
            .map(|entry| entry.file_name().into_string().unwrap())
            .collect()
    }

    #[test]
    fn a_file_has_its_name_once_it_is_whole_and_right() {
        let state = tempfile::tempdir().unwrap();
        let folder = Folder::below(state.path());
        let image = image("1.0.0", CONTENT);
        assert_eq!(look(&folder, Some(image)), (0, false));
        assert_eq!(write(&folder, &image, 0, &CONTENT[..7]), 7);
        assert_eq!(look(&folder, Some(image)), (7, false));
        // A full disk has left half of a piece.
        let part = folder.part(&image);
        fs::write(&part, [&CONTENT[..7], b"half"].concat()).unwrap();
        assert_eq!(write(&folder, &image, 7, &CONTENT[7..]), image.bytes);
        let is_right = true;
        assert_eq!(
            folder.work(Job::Finish { image }),
            Done::Finished { is_right }
        );
        assert_eq!(names(&folder), [image.digest.to_string()]);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&folder.whole(&image)), 0o644);
        assert_eq!(mode(&folder.path), 0o755);
        assert_eq!(look(&folder, Some(image)), (image.bytes, true));
    }

    #[test]
    fn wrong_bytes_never_get_the_name() {
        let state = tempfile::tempdir().unwrap();
        let folder = Folder::below(state.path());
        let image = image("1.0.0", CONTENT);
        look(&folder, Some(image));
        let mut wrong = CONTENT.to_vec();
        wrong[3] ^= 1;
        for wrong in [&wrong[..], &CONTENT[..5]] {
            write(&folder, &image, 0, wrong);
            let is_right = false;
            assert_eq!(
                folder.work(Job::Finish { image }),
                Done::Finished { is_right }
            );
            assert_eq!(names(&folder), Vec::<String>::new());
        }
    }

    #[test]
    fn only_what_belongs_to_the_newest_is_kept() {
        let state = tempfile::tempdir().unwrap();
        let folder = Folder::below(state.path());
        let (first, second) = (image("1.0.0", CONTENT), image("1.0.1", b"other"));
        look(&folder, Some(first));
        write(&folder, &first, 0, CONTENT);
        folder.work(Job::Finish { image: first });
        write(&folder, &second, 0, b"oth");
        assert_eq!(look(&folder, Some(second)), (3, false));
        assert_eq!(names(&folder), [format!("{}.part", second.digest)]);
        // One that is too long is no beginning.
        fs::write(folder.part(&second), b"other and more").unwrap();
        assert_eq!(look(&folder, Some(second)), (0, false));
        write(&folder, &second, 0, b"oth");
        assert_eq!(look(&folder, None), (0, false));
        assert_eq!(names(&folder), Vec::<String>::new());
    }

    #[test]
    fn a_disk_that_fails_is_said_and_inits_file_is_bounded() {
        let state = tempfile::tempdir().unwrap();
        let folder = Folder::below(state.path());
        fs::write(state.path().join(FOLDER), "a file").unwrap();
        let done = folder.work(Job::Look { keep: None });
        assert!(matches!(done, Done::Failed { message } if message.contains("images")));
        let machine = state.path().join("machine.json");
        assert!(read_machine(&machine).unwrap_err().contains("machine.json"));
        fs::write(&machine, vec![b' '; MAX_MACHINE_BYTES as usize + 1]).unwrap();
        assert!(read_machine(&machine).unwrap_err().contains("at most"));
        fs::write(&machine, "{}").unwrap();
        assert_eq!(read_machine(&machine).unwrap(), b"{}");
    }
}
