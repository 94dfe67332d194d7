//! A disk or partition with a seed. This program reads FAT, not the kernel, because a disk that
//! somebody plugs in is hostile.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use fatfs::{FileSystem, FsOptions};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::MAX_FILE_BYTES;
use crate::console::{Page, Problem};
use crate::disk::blocks;

/// A FAT label has at most eleven bytes.
const FAT_LABEL: &str = "CASEMATE";
/// The label of an ISO, and the name of a partition.
const LONG_LABEL: &str = "CASEMATE_SEED";
/// Position of the signature in a boot sector (FAT specification).
const FAT_SIGNATURE: (u64, [u8; 2]) = (510, [0x55, 0xaa]);
/// ISO 9660, 8.4: the first descriptor, and in it the standard's name and the volume's.
const ISO_DESCRIPTOR: u64 = 16 * 2048;
const ISO_NAME: &[u8] = b"\x01CD001";
const ISO_LABEL: std::ops::Range<usize> = 40..72;
const ISO_FOLDER: &str = "/run/seed";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Fat,
    Iso,
}

/// A disk or partition whose label names it as a seed.
#[derive(Debug)]
pub(super) struct Volume {
    pub(super) device: PathBuf,
    kind: Kind,
}

/// Disks and partitions whose label names them as a seed.
pub(super) fn find(page: &mut Page) -> Vec<Volume> {
    let blocks = match blocks() {
        Ok(blocks) => blocks,
        Err(error) => {
            page.problem(Problem::new(
                format!("disks cannot be listed: {error}"),
                "restart; if the failure repeats, report it",
            ));
            return Vec::new();
        }
    };
    let mut found = Vec::new();
    for block in blocks {
        let is_named = block.name.as_deref() == Some(LONG_LABEL);
        let kind = match kind(&block.device, is_named) {
            Ok(Some(kind)) => kind,
            Ok(None) if is_named => {
                page.problem(Problem::new(
                    format!(
                        "the partition {LONG_LABEL} ({}) has no FAT file system",
                        block.device.display()
                    ),
                    "format it with FAT",
                ));
                continue;
            }
            // The drive is not a seed, or is empty.
            Ok(None) | Err(_) => continue,
        };
        found.push(Volume {
            device: block.device,
            kind,
        });
    }
    found
}

fn kind(device: &std::path::Path, is_named: bool) -> io::Result<Option<Kind>> {
    let file = File::open(device)?;
    let mut descriptor = [0; ISO_LABEL.end];
    if file.read_exact_at(&mut descriptor, ISO_DESCRIPTOR).is_ok()
        && descriptor.starts_with(ISO_NAME)
        && descriptor[ISO_LABEL].trim_ascii_end() == LONG_LABEL.as_bytes()
    {
        return Ok(Some(Kind::Iso));
    }
    let (at, signature) = FAT_SIGNATURE;
    let mut there = [0; 2];
    file.read_exact_at(&mut there, at)?;
    if there != signature {
        return Ok(None);
    }
    without_panic(|| {
        let Ok(fat) = FileSystem::new(Bounded::new(file), FsOptions::new()) else {
            return Ok(None);
        };
        let label = fat.read_volume_label_from_root_dir()?;
        let label = label.unwrap_or_else(|| fat.volume_label());
        Ok((is_named || label.trim_end() == FAT_LABEL).then_some(Kind::Fat))
    })
}

/// Turns a panic of `fatfs` into an error: the crate computes positions from numbers of the disk
/// without checking them, and a panic of init would stop the node. What is lost to the panic is a
/// view of the disk, which nothing else uses.
fn without_panic<T>(read: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    catch_unwind(AssertUnwindSafe(read))
        .unwrap_or_else(|_| Err(io::Error::other("the FAT file system is damaged")))
}

impl Volume {
    /// The files in the root folder. A file above the size limit is read just beyond it.
    pub(super) fn files(&self, page: &mut Page) -> Vec<(String, Vec<u8>)> {
        let read = match self.kind {
            Kind::Fat => without_panic(|| self.fat_files()),
            Kind::Iso => self.iso_files(),
        };
        read.unwrap_or_else(|error| {
            page.problem(Problem::new(
                format!(
                    "the seed on {} cannot be read: {error}",
                    self.device.display()
                ),
                "write the seed again",
            ));
            Vec::new()
        })
    }

    fn fat_files(&self) -> io::Result<Vec<(String, Vec<u8>)>> {
        let fat = FileSystem::new(Bounded::new(File::open(&self.device)?), FsOptions::new())?;
        let mut files = Vec::new();
        for entry in fat.root_dir().iter().take(MAX_ENTRIES) {
            let entry = entry?;
            if entry.is_file() {
                let mut bytes = Vec::new();
                let bound = MAX_FILE_BYTES as u64 + 1;
                entry.to_file().take(bound).read_to_end(&mut bytes)?;
                files.push((name(entry.file_name()), bytes));
            }
        }
        Ok(files)
    }

    fn iso_files(&self) -> io::Result<Vec<(String, Vec<u8>)>> {
        fs::create_dir_all(ISO_FOLDER)?;
        let flags =
            MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount(&self.device, ISO_FOLDER, "iso9660", flags, c"")?;
        let read = || {
            let mut files = Vec::new();
            for entry in fs::read_dir(ISO_FOLDER)?.take(MAX_ENTRIES) {
                let entry = entry?;
                if entry.file_type()?.is_file() {
                    let mut bytes = Vec::new();
                    let bound = MAX_FILE_BYTES as u64 + 1;
                    File::open(entry.path())?
                        .take(bound)
                        .read_to_end(&mut bytes)?;
                    files.push((
                        name(entry.file_name().to_string_lossy().into_owned()),
                        bytes,
                    ));
                }
            }
            Ok(files)
        };
        let files = read();
        unmount(ISO_FOLDER, UnmountFlags::empty())?;
        files
    }

    /// Overwrites a file and removes it.
    pub(super) fn wipe(&self, wanted: &str) -> io::Result<()> {
        if self.kind == Kind::Iso {
            return Err(io::Error::other("an ISO cannot be written"));
        }
        let device = File::options().read(true).write(true).open(&self.device)?;
        without_panic(|| {
            let fat = FileSystem::new(Bounded::new(device.try_clone()?), FsOptions::new())?;
            wipe_in(&fat.root_dir(), wanted)?;
            fat.unmount()
        })?;
        device.sync_all()
    }
}

fn wipe_in(root: &fatfs::Dir<'_, Bounded>, wanted: &str) -> io::Result<()> {
    let entries: Vec<_> = root.iter().take(MAX_ENTRIES).collect::<io::Result<_>>()?;
    for entry in entries
        .iter()
        .filter(|entry| entry.is_file() && name(entry.file_name()) == wanted)
    {
        let mut file = entry.to_file();
        let length = usize::try_from(entry.len())
            .unwrap_or(usize::MAX)
            .min(MAX_FILE_BYTES);
        file.seek(SeekFrom::Start(0))?;
        file.write_all(&vec![0; length])?;
        file.flush()?;
        root.remove(&entry.file_name())?;
    }
    Ok(())
}

/// Bytes of a disk after which reading stops: a circular table has no end.
const MAX_READ_BYTES: u64 = 32 * 1024 * 1024;

/// A disk of which only a bounded number of bytes is read.
struct Bounded {
    disk: File,
    left: u64,
}

impl Bounded {
    fn new(disk: File) -> Self {
        Self {
            disk,
            left: MAX_READ_BYTES,
        }
    }
}

impl Read for Bounded {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let read = self.disk.read(to)?;
        self.left = self
            .left
            .checked_sub(read as u64)
            .ok_or_else(|| io::Error::other("too many bytes were read"))?;
        Ok(read)
    }
}

impl Write for Bounded {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        self.disk.write(from)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.disk.flush()
    }
}

impl Seek for Bounded {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.disk.seek(to)
    }
}

/// Most entries that are read: more than the files of a seed, because folders and labels are
/// entries too.
const MAX_ENTRIES: usize = 256;

/// Lower-cases a name that FAT or ISO may store in capitals only.
fn name(name: String) -> String {
    let is_upper = name.bytes().all(|byte| !byte.is_ascii_lowercase());
    if is_upper {
        name.to_ascii_lowercase()
    } else {
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(folder: &std::path::Path) -> Volume {
        let device = folder.join("seed");
        let file = File::options()
            .create(true)
            .truncate(true)
            .read(true)
            .write(true)
            .open(&device)
            .unwrap();
        file.set_len(2 << 20).unwrap();
        let options = fatfs::FormatVolumeOptions::new().volume_label(*b"CASEMATE   ");
        fatfs::format_volume(&file, options).unwrap();
        let fat = FileSystem::new(&file, FsOptions::new()).unwrap();
        let mut token = fat
            .root_dir()
            .create_file(super::super::JOIN_TOKEN)
            .unwrap();
        token.write_all(b"casemate-join-THE-TOKEN").unwrap();
        let mut config = fat.root_dir().create_file("NODE.TOM").unwrap();
        config.write_all(b"[gateway]").unwrap();
        drop((token, config));
        fat.unmount().unwrap();
        Volume {
            device,
            kind: Kind::Fat,
        }
    }

    #[test]
    fn a_token_is_read_and_then_gone_from_the_disk() {
        let folder = tempfile::tempdir().unwrap();
        let volume = volume(folder.path());
        assert_eq!(kind(&volume.device, false).unwrap(), Some(Kind::Fat));
        let files = volume.fat_files().unwrap();
        assert_eq!(files.len(), 2);
        assert_eq!(
            files[0],
            ("join-token".into(), b"casemate-join-THE-TOKEN".to_vec())
        );
        assert_eq!(files[1].0, "node.tom");
        volume.wipe("join-token").unwrap();
        let files = volume.fat_files().unwrap();
        assert_eq!(files.len(), 1);
        let raw = fs::read(&volume.device).unwrap();
        assert!(!raw.windows(9).any(|window| window == b"THE-TOKEN"));
    }

    fn fat32(folder: &std::path::Path) -> (PathBuf, File) {
        let path = folder.join("disk");
        let file = File::options()
            .create(true)
            .truncate(true)
            .read(true)
            .write(true)
            .open(&path)
            .unwrap();
        file.set_len(64 << 20).unwrap();
        let options = fatfs::FormatVolumeOptions::new()
            .fat_type(fatfs::FatType::Fat32)
            .bytes_per_cluster(512);
        fatfs::format_volume(&file, options).unwrap();
        (path, file)
    }

    #[test]
    fn a_root_at_a_cluster_that_cannot_be_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let (path, file) = fat32(folder.path());
        // The first cluster has the number 2.
        file.write_all_at(&0_u32.to_le_bytes(), 44).unwrap();
        let error = kind(&path, true).unwrap_err();
        assert!(error.to_string().contains("damaged"), "{error}");
        let volume = Volume {
            device: path,
            kind: Kind::Fat,
        };
        let mut page = super::super::tests::page();
        assert!(volume.files(&mut page).is_empty());
        assert!(volume.wipe("join-token").is_err());
    }

    #[test]
    fn a_table_in_a_circle_is_given_up() {
        let folder = tempfile::tempdir().unwrap();
        let (path, file) = fat32(folder.path());
        let mut boot = [0; 512];
        file.read_exact_at(&mut boot, 0).unwrap();
        let number = |at: usize, bytes: usize| {
            let mut value = [0; 4];
            value[..bytes].copy_from_slice(&boot[at..at + bytes]);
            u64::from(u32::from_le_bytes(value))
        };
        let (reserved, tables, sectors) = (number(14, 2), number(16, 1), number(36, 4));
        // Cluster 2 of the root points to itself, and all its entries are deleted.
        for table in 0..tables {
            let at = (reserved + table * sectors) * 512 + 2 * 4;
            file.write_all_at(&2_u32.to_le_bytes(), at).unwrap();
        }
        let root = (reserved + tables * sectors) * 512;
        file.write_all_at(&[0xe5; 512], root).unwrap();
        let error = kind(&path, false).unwrap_err();
        assert!(error.to_string().contains("too many bytes"), "{error}");
    }

    #[test]
    fn other_disks_are_no_seed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        fs::write(&path, vec![0; 40_000]).unwrap();
        assert_eq!(kind(&path, true).unwrap(), None);
        let mut sector = vec![0; 40_000];
        sector[510..512].copy_from_slice(&[0x55, 0xaa]);
        fs::write(&path, &sector).unwrap();
        assert_eq!(kind(&path, true).unwrap(), None);
        fs::write(&path, b"").unwrap();
        assert!(kind(&path, false).is_err());
    }
}
