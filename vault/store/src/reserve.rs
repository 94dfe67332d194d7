//! Disk space for withdrawals. Files of one slice each occupy it; a write that may use the reserve
//! removes them one after the other until it fits, and they are made again as soon as the disk has
//! space.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use crate::StoreError;
use crate::files::{failed, make_folder, sync_folder};

/// Size of a file of the reserve. Removing one also frees an inode, for a disk that has run out of
/// inodes.
const SLICE_BYTES: u64 = 1024 * 1024;
/// Smallest file of the reserve, bytes: the rest of a slice after a write is filled again in such
/// steps.
const LEAST_BYTES: u64 = 4 * 1024;
/// The reserve without the memory file, bytes. A write needs at most [`LOG_BYTES`] and twice the
/// largest envelope, 4 MiB, for a moment, and until sled cleans up, it leaves about as much garbage
/// in sled's log as it writes.
const BASE_BYTES: u64 = 16 * 1024 * 1024;
/// The part of it for the root's statements alone, bytes.
const ROOT_BYTES: u64 = 6 * 1024 * 1024;
/// Bytes that a commit needs beyond twice its records: sled fills its log in segments of 512 KiB,
/// and moves the valid part of an old segment into a new one.
pub(crate) const LOG_BYTES: u64 = 2 * 1024 * 1024;
/// Bytes that are written at a time where the file system cannot allocate.
const CHUNK_BYTES: usize = 64 * 1024;

/// The disk space that a write may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// Space that is free beside a whole reserve: for writes that increase what is stored.
    Free,
    /// The reserve too, except the root's part: for withdrawals.
    Withdrawal,
    /// All of the reserve: for the root's statements.
    Root,
}

/// The state of the reserve, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReserveState {
    /// Bytes on the disk.
    pub held: u64,
    /// Bytes of a whole reserve.
    pub wanted: u64,
}

/// The reserve of one store; the store owns it and locks it for each write.
#[derive(Debug)]
pub(crate) struct Reserve {
    folder: PathBuf,
    /// Sizes of the files, which are numbered.
    slices: Vec<u64>,
    wanted: u64,
    was_whole: bool,
}

impl Reserve {
    /// Opens the reserve below the store's folder. Existing files count.
    pub(crate) fn open(store: &Path) -> Result<Self, StoreError> {
        let folder = store.join("reserve");
        make_folder(&folder)?;
        let mut reserve = Self {
            folder,
            slices: Vec::new(),
            wanted: BASE_BYTES,
            was_whole: true,
        };
        remove_if_there(&reserve.probe_path())?;
        while let Ok(found) = fs::metadata(reserve.slice(reserve.slices.len())) {
            reserve.slices.push(found.len());
        }
        Ok(reserve)
    }

    fn slice(&self, number: usize) -> PathBuf {
        self.folder.join(number.to_string())
    }

    fn probe_path(&self) -> PathBuf {
        self.folder.join("probe")
    }

    /// Sets the memory file's length: replacing that file needs as much again for a moment.
    pub(crate) fn covers(&mut self, memory_bytes: u64) {
        self.wanted = BASE_BYTES + memory_bytes.next_multiple_of(SLICE_BYTES);
    }

    pub(crate) fn state(&self) -> ReserveState {
        ReserveState {
            held: self.slices.iter().sum(),
            wanted: self.wanted,
        }
    }

    fn is_whole(&self) -> bool {
        self.state().held >= self.wanted
    }

    /// Makes the reserve whole, as far as there is space.
    pub(crate) fn fill(&mut self) {
        let before = self.slices.len();
        let mut bytes = SLICE_BYTES;
        while !self.is_whole() && bytes >= LEAST_BYTES {
            let size = bytes.min(self.wanted - self.state().held);
            if allocate(&self.slice(self.slices.len()), size, true).is_ok() {
                self.slices.push(size);
            } else {
                bytes /= 2;
            }
        }
        if self.slices.len() > before {
            // A slice that is missing after a power cut is made again.
            let _synced = sync_folder(&self.folder);
        }
        let (is_whole, ReserveState { held, wanted }) = (self.is_whole(), self.state());
        if is_whole && !self.was_whole {
            tracing::info!(held, "the vault's reserve on the disk is whole again");
        } else if !is_whole && self.was_whole {
            tracing::error!(
                held,
                wanted,
                "the disk is full: the vault accepts only withdrawals and what the root has signed until the disk has room"
            );
        }
        self.was_whole = is_whole;
    }

    /// Frees a slice for a write that may use it; returns whether there was one.
    pub(crate) fn release(&mut self, room: Room) -> Result<bool, StoreError> {
        let least = match room {
            Room::Free => return Ok(false),
            Room::Withdrawal => ROOT_BYTES,
            Room::Root => 0,
        };
        let held = self.state().held;
        let Some(last) = self.slices.len().checked_sub(1) else {
            return Ok(false);
        };
        if held < least + self.slices[last] {
            return Ok(false);
        }
        remove_if_there(&self.slice(last))?;
        self.slices.pop();
        // Some file systems free the space of a removed file only when the removal is on the disk.
        sync_folder(&self.folder)?;
        Ok(true)
    }

    /// Makes sure that so many bytes are free before a write begins, because sled does not recover
    /// from a write that a full disk cuts short.
    ///
    /// # Errors
    /// The space is not free, and the reserve, or what is left of it, may not be used or does not
    /// suffice.
    pub(crate) fn make_room(&mut self, bytes: u64, room: Room) -> Result<(), StoreError> {
        if !self.is_whole() {
            self.fill();
        }
        if room == Room::Free && !self.is_whole() {
            return Err(StoreError::Full(self.folder.clone()));
        }
        loop {
            match self.probe(bytes) {
                Err(StoreError::Full(_)) if self.release(room)? => {}
                done => return done,
            }
        }
    }

    fn probe(&self, bytes: u64) -> Result<(), StoreError> {
        let path = self.probe_path();
        allocate(&path, bytes, false).map_err(failed("cannot make room in", &self.folder))?;
        remove_if_there(&path)
    }
}

fn remove_if_there(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(failed("cannot remove", path)(error))
        }
        _ => Ok(()),
    }
}

/// Makes a file that occupies so many bytes, or none.
fn allocate(path: &Path, bytes: u64, is_kept: bool) -> io::Result<()> {
    let occupy = || {
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(path)?;
        match fallocate(&file, FallocateFlags::empty(), 0, bytes) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => fill_with_noise(&mut file, bytes)?,
            done => done?,
        }
        if is_kept { file.sync_all() } else { Ok(()) }
    };
    occupy().inspect_err(|_| {
        // A partial file is useless.
        let _removed = fs::remove_file(path);
    })
}

/// For file systems that cannot allocate; random bytes, because some file systems compress repeated
/// ones.
fn fill_with_noise(file: &mut fs::File, bytes: u64) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut left = bytes;
    while left > 0 {
        let most = usize::try_from(left).map_or(CHUNK_BYTES, |left| left.min(CHUNK_BYTES));
        ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut chunk[..most])
            .map_err(|_| io::Error::other("the kernel gave no random bytes"))?;
        file.write_all(&chunk[..most])?;
        left -= most as u64;
    }
    Ok(())
}
