//! The rollback memory: a log of sealed frames, in a file that outlives the loss of the records.
//! Each commit appends one frame, so that a change costs its own size and not that of the whole
//! memory.
//!
//! ```text
//! header   "casemate memory 2\n", 16 random bytes (the log's id), u32 number of base frames
//! frame    u32 length, its complement, sealed bytes
//! ```
//! Numbers are big-endian. The base is written at once, by replacing the file; frames after it are
//! appended and synced one at a time. Id, base and position of a frame are in its additional data:
//! no frame can be left out, repeated or moved, except the last ones of the file. A frame that a
//! kill or a power cut left unfinished was never acknowledged, so it is skipped. Anything else that
//! does not open is damage.
//!
//! Format 1, the one before, is one sealed text that was replaced whole. It is read and never
//! written.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use casemate_durable::PRIVATE;
use casemate_trust::Random;
use zeroize::Zeroizing;

use crate::files::{failed, replace_file};
use crate::sealing::Sealer;
use crate::{MAX_FILE_BYTES, StoreError};

/// The file's name, and the additional data of format 1.
pub(crate) const MEMORY: &str = "memory";
/// What the file begins with; format 1 begins with a random nonce.
const MAGIC: &[u8] = b"casemate memory 2\n";
const ID_BYTES: usize = 16;
/// A frame's length and its complement.
const HEAD_BYTES: usize = 8;
/// Blocks that a power cut kept off the disk read as zeros. The chance that a sealed frame ends so
/// is one in 2^128.
const UNWRITTEN: [u8; 16] = [0; 16];
/// Appended bytes beyond which the log counts as long, however small the base is.
const SHORT_BYTES: u64 = 256 * 1024;

/// The memory as read from the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoredMemory {
    /// Format 1: one text.
    Whole(Zeroizing<Vec<u8>>),
    /// Format 2: frames, oldest first.
    Frames(Vec<Zeroizing<Vec<u8>>>),
}

/// The key and the identity of a log, from which each frame's additional data is built.
#[derive(Debug)]
struct Header {
    id: [u8; ID_BYTES],
    base: u32,
}

impl Header {
    fn to_bytes(&self) -> Vec<u8> {
        [MAGIC, &self.id, &self.base.to_be_bytes()].concat()
    }

    /// Reads the header of a whole file; `None` for a file of another format.
    fn read(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (id, rest) = bytes.strip_prefix(MAGIC)?.split_first_chunk()?;
        let (base, rest) = rest.split_first_chunk()?;
        let base = u32::from_be_bytes(*base);
        Some((Self { id: *id, base }, rest))
    }

    fn name(&self, number: usize) -> String {
        let id = u128::from_be_bytes(self.id);
        format!("{MEMORY}/{id:032x}/{}/{number}", self.base)
    }

    fn seal(
        &self,
        sealer: &Sealer,
        number: usize,
        bytes: &[u8],
        random: Random<'_>,
    ) -> Result<Vec<u8>, StoreError> {
        let sealed = sealer.seal(&self.name(number), bytes, random)?;
        let length = u32::try_from(sealed.len()).map_err(|_| StoreError::Sealing)?;
        let head = [length.to_be_bytes(), (!length).to_be_bytes()].concat();
        Ok([head, sealed].concat())
    }

    /// The frames that follow the header; `None` if any frame is damaged or missing.
    fn frames(&self, sealer: &Sealer, mut rest: &[u8]) -> Option<Vec<Zeroizing<Vec<u8>>>> {
        let mut frames = Vec::new();
        while !rest.is_empty() {
            let sealed = rest.get(HEAD_BYTES..).and_then(|body| {
                let (length, complement) = rest[..HEAD_BYTES].split_first_chunk()?;
                let length = u32::from_be_bytes(*length);
                let is_whole = complement == (!length).to_be_bytes();
                is_whole.then(|| body.get(..length as usize))
            });
            let opened = match sealed {
                // The rest is shorter than a frame's header, or than the length in it.
                None if rest.len() < HEAD_BYTES => break,
                Some(None) => break,
                None => None,
                Some(Some(sealed)) => sealer.open(&self.name(frames.len()), sealed),
            };
            match (opened, sealed.flatten()) {
                (Some(opened), Some(sealed)) => {
                    frames.push(opened);
                    rest = &rest[HEAD_BYTES + sealed.len()..];
                }
                _ if rest.ends_with(&UNWRITTEN) => break,
                _ => return None,
            }
        }
        if !rest.is_empty() {
            tracing::warn!(
                bytes = rest.len(),
                "the last write to the rollback memory was cut short; its content is restored from \
                 the record store"
            );
        }
        (frames.len() >= self.base as usize).then_some(frames)
    }
}

/// The file, open for appending the next frame.
#[derive(Debug)]
pub(crate) struct MemoryLog {
    file: File,
    path: PathBuf,
    header: Header,
    frames: usize,
    base_bytes: u64,
    length: u64,
}

impl MemoryLog {
    /// Reads the file; `None` when the file does not exist.
    pub(crate) fn read(folder: &Path, sealer: &Sealer) -> Result<Option<StoredMemory>, StoreError> {
        let path = folder.join(MEMORY);
        let Some(bytes) = crate::files::read(&path)? else {
            return Ok(None);
        };
        let stored = match Header::read(&bytes) {
            Some((header, rest)) => header.frames(sealer, rest).map(StoredMemory::Frames),
            None => sealer.open(MEMORY, &bytes).map(StoredMemory::Whole),
        };
        stored.map(Some).ok_or(StoreError::Sealed(path))
    }

    /// Replaces the file by a log that has these frames as its base, wholly or not at all;
    /// `replace` writes the file and may retry.
    pub(crate) fn write(
        folder: &Path,
        sealer: &Sealer,
        frames: impl ExactSizeIterator<Item = Vec<u8>>,
        random: Random<'_>,
        replace: impl FnOnce(&dyn Fn() -> Result<(), StoreError>) -> Result<(), StoreError>,
    ) -> Result<Self, StoreError> {
        let path = folder.join(MEMORY);
        let mut id = [0; ID_BYTES];
        random(&mut id);
        let base = u32::try_from(frames.len()).map_err(|_| StoreError::Sealing)?;
        let header = Header { id, base };
        let mut bytes = header.to_bytes();
        for (number, frame) in frames.enumerate() {
            bytes.extend(header.seal(sealer, number, &frame, random)?);
        }
        if bytes.len() > MAX_FILE_BYTES {
            return Err(StoreError::TooLarge(path));
        }
        replace(&|| replace_file(&path, PRIVATE, &bytes))?;
        let opened = OpenOptions::new().write(true).open(&path);
        let file = opened.map_err(failed("cannot open", &path))?;
        let length = bytes.len() as u64;
        Ok(Self {
            file,
            path,
            header,
            frames: base as usize,
            base_bytes: length,
            length,
        })
    }

    /// Seals the next frame.
    pub(crate) fn seal(
        &self,
        sealer: &Sealer,
        bytes: &[u8],
        random: Random<'_>,
    ) -> Result<Vec<u8>, StoreError> {
        let sealed = self.header.seal(sealer, self.frames, bytes, random)?;
        if self.length as usize + sealed.len() > MAX_FILE_BYTES {
            return Err(StoreError::TooLarge(self.path.clone()));
        }
        Ok(sealed)
    }

    /// Appends the sealed frame, and returns when it is on the disk. After a failure the same frame
    /// may be tried again; no other frame may come before the file was replaced.
    pub(crate) fn append(&mut self, sealed: &[u8]) -> Result<(), StoreError> {
        let written = self.file.write_all_at(sealed, self.length);
        written
            .and_then(|()| self.file.sync_all())
            .map_err(failed("cannot write", &self.path))?;
        self.length += sealed.len() as u64;
        self.frames += 1;
        Ok(())
    }

    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// Whether the appended frames are larger than the base, so that a new base would at least
    /// halve the file.
    pub(crate) fn is_long(&self) -> bool {
        self.length - self.base_bytes > self.base_bytes.max(SHORT_BYTES)
    }
}
