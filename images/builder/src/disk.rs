//! A disk with a GPT (UEFI 5): a boot partition with FAT, and an empty state partition, which init
//! formats as ext4.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use fatfs::{
    Date, DateTime, FatType, FileSystem, FormatVolumeOptions, FsOptions, Time, TimeProvider,
};
use gpt::disk::LogicalBlockSize;
use gpt::mbr::ProtectiveMBR;
use gpt::partition_types::{EFI, LINUX_FS};
use ring::digest::{SHA256, digest};
use uuid::Builder;

use crate::{Error, Image};

/// Room for two images of the largest size, and for the loader's own files.
pub const BOOT_BYTES: u64 = 512 * MIB;
/// Start of the boot partition, bytes.
pub const BOOT_START: u64 = MARGIN_BYTES;
/// Name of the state partition, by which init finds it.
const STATE: &str = "casemate-state";
const BOOT: &str = "casemate-boot";
const MIB: u64 = 1024 * 1024;
const SECTOR_BYTES: u64 = 512;
/// Space before the first partition and after the last, for both tables and alignment.
const MARGIN_BYTES: u64 = MIB;

/// A file of the boot partition.
#[derive(Debug, Clone, Copy)]
pub struct BootFile<'a> {
    /// Its path, with `/` between the parts.
    pub path: &'a str,
    /// Its contents.
    pub bytes: &'a [u8],
}

/// The path at which the boot loader looks for an image of this version.
pub fn uki_path(version: &str) -> String {
    format!("EFI/Linux/casemate_{version}.efi")
}

/// The files of a new boot partition: the loader, which shows no menu, and one image at `uki_path`.
pub fn boot_files<'a>(image: &'a Image, uki_path: &'a str) -> [BootFile<'a>; 3] {
    let file = |path, bytes| BootFile { path, bytes };
    [
        file("EFI/BOOT/BOOTX64.EFI", &image.loader[..]),
        file("loader/loader.conf", b"timeout 0\neditor no\n"),
        file(uki_path, &image.uki),
    ]
}

/// Writes a disk image: a boot partition with these files, if there are any, and a state partition
/// of `state_bytes`. The file is sparse. The same arguments give the same bytes; a different
/// `identity` gives a disk with other ids.
///
/// # Errors
/// The file cannot be written, or the boot files do not fit.
pub fn write_disk(
    path: &Path,
    boot: &[BootFile<'_>],
    state_bytes: u64,
    identity: &str,
) -> Result<(), Error> {
    let failed =
        |error: &dyn std::fmt::Display| Error::file(path)(io::Error::other(error.to_string()));
    let boot_bytes = if boot.is_empty() { 0 } else { BOOT_BYTES };
    let total = 2 * MARGIN_BYTES + boot_bytes + state_bytes.next_multiple_of(MIB);
    let mut file = File::options()
        .create(true)
        .truncate(true)
        .read(true)
        .write(true)
        .open(path)
        .map_err(Error::file(path))?;
    file.set_len(total).map_err(Error::file(path))?;
    let sectors = u32::try_from(total / SECTOR_BYTES - 1).unwrap_or(u32::MAX);
    ProtectiveMBR::with_lb_size(sectors)
        .overwrite_lba0(&mut file)
        .map_err(|error| failed(&error))?;
    let mut disk = gpt::GptConfig::new()
        .writable(true)
        .logical_block_size(LogicalBlockSize::Lb512)
        .create_from_device(file, Some(unique(identity, "disk")))
        .map_err(|error| failed(&error))?;
    let mut parts = vec![(STATE, state_bytes.next_multiple_of(MIB), LINUX_FS)];
    if !boot.is_empty() {
        parts.insert(0, (BOOT, BOOT_BYTES, EFI));
    }
    let mut first = MARGIN_BYTES / SECTOR_BYTES;
    for (number, (name, bytes, kind)) in (1..).zip(parts) {
        let sectors = bytes / SECTOR_BYTES;
        disk.add_partition_at(name, number, first, sectors, kind, 0)
            .map_err(|error| failed(&error))?;
        first += sectors;
    }
    let mut partitions = disk.take_partitions();
    for partition in partitions.values_mut() {
        partition.part_guid = unique(identity, &partition.name);
    }
    disk.update_partitions(partitions)
        .map_err(|error| failed(&error))?;
    let mut file = disk.write().map_err(|error| failed(&error))?;
    if !boot.is_empty() {
        let window = Window {
            file: &mut file,
            start: BOOT_START,
            length: BOOT_BYTES,
            at: 0,
        };
        write_boot(window, boot, identity).map_err(Error::file(path))?;
    }
    file.sync_all().map_err(Error::file(path))
}

/// Writes a FAT32 file system that firmware can read.
fn write_boot(mut window: Window<'_>, files: &[BootFile<'_>], identity: &str) -> io::Result<()> {
    let id = unique(identity, "boot volume").as_fields().0;
    let options = FormatVolumeOptions::new()
        .fat_type(FatType::Fat32)
        .volume_id(id)
        .volume_label(*b"CASEMATE_BT");
    fatfs::format_volume(&mut window, options)?;
    let options = FsOptions::new().time_provider(&FirstDay);
    let fat = FileSystem::new(&mut window, options)?;
    for file in files {
        let mut folder = fat.root_dir();
        let (folders, name) = file.path.rsplit_once('/').unwrap_or(("", file.path));
        for part in folders.split('/').filter(|part| !part.is_empty()) {
            folder = folder.create_dir(part)?;
        }
        let mut to = folder.create_file(name)?;
        to.truncate()?;
        to.write_all(file.bytes)?;
        to.flush()?;
    }
    fat.unmount()
}

/// Dates files on the first day of FAT. Firmware does not rename a file without a date, and the
/// boot loader counts tries by renaming.
#[derive(Debug)]
struct FirstDay;

impl TimeProvider for FirstDay {
    fn get_current_date(&self) -> Date {
        Date {
            year: 1980,
            month: 1,
            day: 1,
        }
    }

    fn get_current_date_time(&self) -> DateTime {
        let time = Time {
            hour: 0,
            min: 0,
            sec: 0,
            millis: 0,
        };
        let date = self.get_current_date();
        DateTime { date, time }
    }
}

/// An id that depends only on `identity` and `what`.
fn unique(identity: &str, what: &str) -> uuid::Uuid {
    let hash = digest(&SHA256, format!("{identity}\n{what}").as_bytes());
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash.as_ref()[..16]);
    // Version 8: bytes from a hash of our own (RFC 9562, 5.8).
    Builder::from_custom_bytes(bytes).into_uuid()
}

/// A section of a file that behaves like a file.
struct Window<'a> {
    file: &'a mut File,
    start: u64,
    length: u64,
    at: u64,
}

impl Window<'_> {
    fn room(&self, wanted: usize) -> usize {
        let left = self.length.saturating_sub(self.at);
        usize::try_from(left).unwrap_or(usize::MAX).min(wanted)
    }
}

impl Read for Window<'_> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let room = self.room(to.len());
        self.file.seek(SeekFrom::Start(self.start + self.at))?;
        let read = self.file.read(&mut to[..room])?;
        self.at += read as u64;
        Ok(read)
    }
}

impl Write for Window<'_> {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        let room = self.room(from.len());
        self.file.seek(SeekFrom::Start(self.start + self.at))?;
        let written = self.file.write(&from[..room])?;
        self.at += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Seek for Window<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.length.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or_else(|| io::Error::other("position before the beginning"))?;
        Ok(self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_has_what_was_asked_for_and_twice_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let files = [
            BootFile {
                path: "EFI/BOOT/BOOTX64.EFI",
                bytes: b"loader",
            },
            BootFile {
                path: "EFI/Linux/casemate_1.efi",
                bytes: &[7; 100_000],
            },
        ];
        let (one, two) = (folder.path().join("1"), folder.path().join("2"));
        write_disk(&one, &files, 16 * MIB, "a").unwrap();
        write_disk(&two, &files, 16 * MIB, "a").unwrap();
        let head = |path: &Path| {
            let mut bytes = vec![0; 32 << 20];
            File::open(path).unwrap().read_exact(&mut bytes).unwrap();
            bytes
        };
        assert!(head(&one) == head(&two));
        let disk = gpt::GptConfig::new().open(&one).unwrap();
        let names: Vec<_> = disk
            .partitions()
            .values()
            .map(|part| part.name.clone())
            .collect();
        assert_eq!(names, [BOOT, STATE]);
        let mut file = File::options().read(true).write(true).open(&one).unwrap();
        let mut window = Window {
            file: &mut file,
            start: MARGIN_BYTES,
            length: BOOT_BYTES,
            at: 0,
        };
        let fat = FileSystem::new(&mut window, FsOptions::new()).unwrap();
        assert_eq!(fat.fat_type(), FatType::Fat32);
        let mut read = Vec::new();
        let mut opened = fat
            .root_dir()
            .open_file("EFI/Linux/casemate_1.efi")
            .unwrap();
        opened.read_to_end(&mut read).unwrap();
        assert_eq!(read, [7; 100_000]);
    }

    #[test]
    fn a_disk_for_state_alone_has_no_boot_partition() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        write_disk(&path, &[], 8 * MIB, "b").unwrap();
        let disk = gpt::GptConfig::new().open(&path).unwrap();
        let names: Vec<_> = disk
            .partitions()
            .values()
            .map(|part| part.name.clone())
            .collect();
        assert_eq!(names, [STATE]);
        assert_eq!(path.metadata().unwrap().len(), 10 * MIB);
    }
}
