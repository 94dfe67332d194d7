//! The boot partition: FAT, with a file for each image. The boot loader starts the newest image
//! that has tries left, and counts tries in the file's name (systemd-boot, "Automatic Boot
//! Assessment"):
//!
//! ```text
//! casemate_1.2.3.efi      blessed
//! casemate_1.2.4+3.efi    three tries left
//! casemate_1.2.4+1-2.efi  tried twice, one try left
//! casemate_1.2.4+0-3.efi  all tries failed: the boot loader prefers any other image
//! ```

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;

use casemate_trust::image::ImageVersion;
use fatfs::{Date, DateTime, Dir, FileSystem, FsOptions, Time, TimeProvider};
use ring::digest::{Context, SHA256};

/// The folder in which the boot loader looks for images.
const FOLDER: &str = "EFI/Linux";
const STEM: &str = "casemate_";
const ENDING: &str = ".efi";
/// The name of an incomplete file, which the boot loader ignores.
const PART: &str = "casemate.part";
/// How often a new image is tried.
pub(crate) const TRIES: u32 = 3;
/// Most entries of the folder that are read.
const MAX_ENTRIES: usize = 1024;
/// Bytes that stay free beside a new image, because the folder grows.
const MARGIN_BYTES: u64 = 1024 * 1024;
const CHUNK_BYTES: usize = 256 * 1024;

/// Why the boot partition or an image cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    #[error("the boot partition cannot be used: {0}")]
    Io(#[from] io::Error),
    #[error("the boot partition has no room: expected {wanted} bytes, got {free}")]
    Full { wanted: u64, free: u64 },
    #[error(
        "the image differs from the signed one: expected the SHA-256 digest {expected}, got {got}"
    )]
    Digest { expected: String, got: String },
}

/// The file of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    name: String,
    pub(crate) version: ImageVersion,
    /// Tries left; `None` when the image is blessed.
    pub(crate) tries_left: Option<u32>,
}

impl Entry {
    /// Parses the name of an image's file.
    fn parse(name: &str) -> Option<Self> {
        let stem = name.strip_prefix(STEM)?.strip_suffix(ENDING)?;
        let (version, tries) = match stem.split_once('+') {
            None => (stem, None),
            Some((version, counts)) => {
                let left = counts.split_once('-').map_or(counts, |(left, _)| left);
                (version, Some(left.parse().ok()?))
            }
        };
        Some(Self {
            name: name.to_owned(),
            version: version.parse().ok()?,
            tries_left: tries,
        })
    }
}

/// The boot partition of this machine's disk.
#[derive(Debug, Clone)]
pub(crate) struct BootPartition {
    pub(crate) device: PathBuf,
}

type Fat = FileSystem<File>;

impl BootPartition {
    /// Runs an operation on the folder of images, and syncs the disk afterwards.
    fn with<T>(
        &self,
        what: impl FnOnce(&Fat, &Dir<'_, File>) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let device = File::options().read(true).write(true).open(&self.device)?;
        let options = FsOptions::new().time_provider(&FirstDay);
        let fat = FileSystem::new(device.try_clone()?, options)?;
        let done = what(&fat, &fat.root_dir().open_dir(FOLDER)?);
        fat.unmount()?;
        device.sync_all()?;
        done
    }

    /// The images on the partition.
    pub(crate) fn images(&self) -> Result<Vec<Entry>, Fault> {
        self.with(|_, folder| images_in(folder))
    }

    /// Writes an image beside the existing ones, with `TRIES` tries. Other images than it and
    /// `running` are removed first, for room. `before_it_counts` runs when the file is complete and
    /// the boot loader cannot see it yet.
    pub(crate) fn add(
        &self,
        running: ImageVersion,
        version: ImageVersion,
        image: &mut (impl Read + Seek),
        bytes: u64,
        sha256: &[u8; 32],
        before_it_counts: impl FnOnce() -> io::Result<()>,
    ) -> Result<(), Fault> {
        // The digest is checked before any other image is removed.
        check(image, sha256)?;
        image.seek(SeekFrom::Start(0))?;
        self.with(|fat, folder| {
            for old in images_in(folder)? {
                if old.version != running {
                    folder.remove(&old.name)?;
                }
            }
            if exists(folder, PART)? {
                folder.remove(PART)?;
            }
            let stats = fat.stats()?;
            let free = u64::from(stats.free_clusters()) * u64::from(stats.cluster_size());
            let wanted = bytes + MARGIN_BYTES;
            if free < wanted {
                return Err(Fault::Full { wanted, free });
            }
            let mut file = folder.create_file(PART)?;
            let written = copy(&mut image.take(bytes), &mut file)
                .map_err(Fault::from)
                .and_then(|()| check(&mut file, sha256));
            if let Err(fault) = written {
                folder.remove(PART)?;
                return Err(fault);
            }
            Ok(())
        })?;
        before_it_counts()?;
        self.with(|_, folder| {
            folder.rename(PART, folder, &format!("{STEM}{version}+{TRIES}{ENDING}"))?;
            Ok(())
        })
    }

    /// Marks an image as good: its tries are no longer counted.
    pub(crate) fn bless(&self, version: ImageVersion) -> Result<(), Fault> {
        self.with(|_, folder| {
            for entry in images_in(folder)? {
                if entry.version == version && entry.tries_left.is_some() {
                    folder.rename(&entry.name, folder, &format!("{STEM}{version}{ENDING}"))?;
                }
            }
            Ok(())
        })
    }

    /// Removes a bad image.
    pub(crate) fn remove(&self, version: ImageVersion) -> Result<(), Fault> {
        self.with(|_, folder| {
            for entry in images_in(folder)? {
                if entry.version == version {
                    folder.remove(&entry.name)?;
                }
            }
            Ok(())
        })
    }
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

fn images_in(folder: &Dir<'_, File>) -> Result<Vec<Entry>, Fault> {
    let mut images = Vec::new();
    for entry in folder.iter().take(MAX_ENTRIES) {
        images.extend(Entry::parse(&entry?.file_name()));
    }
    Ok(images)
}

fn exists(folder: &Dir<'_, File>, name: &str) -> io::Result<bool> {
    for entry in folder.iter().take(MAX_ENTRIES) {
        if entry?.file_name() == name {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Copies all bytes. The file's entry names its first cluster from the first piece on, so that a
/// file which a power cut left incomplete can be removed.
fn copy(from: &mut dyn Read, to: &mut dyn Write) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut is_first = true;
    loop {
        match from.read(&mut chunk)? {
            0 => return to.flush(),
            read => to.write_all(&chunk[..read])?,
        }
        if std::mem::take(&mut is_first) {
            to.flush()?;
        }
    }
}

fn check<F: Read + Seek>(file: &mut F, expected: &[u8; 32]) -> Result<(), Fault> {
    file.seek(SeekFrom::Start(0))?;
    let mut context = Context::new(&SHA256);
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match file.read(&mut chunk)? {
            0 => break,
            read => context.update(&chunk[..read]),
        }
    }
    let got = context.finish();
    if got.as_ref() == expected {
        return Ok(());
    }
    Err(Fault::Digest {
        expected: hex::encode(expected),
        got: hex::encode(got),
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use fatfs::{FatType, FormatVolumeOptions};
    use ring::digest::digest;

    use super::*;

    fn version(text: &str) -> ImageVersion {
        text.parse().unwrap()
    }

    /// A small partition with one running image.
    pub(crate) fn partition(folder: &std::path::Path) -> BootPartition {
        let device = folder.join("boot");
        let file = File::options()
            .create(true)
            .truncate(true)
            .read(true)
            .write(true)
            .open(&device)
            .unwrap();
        file.set_len(40 << 20).unwrap();
        let options = FormatVolumeOptions::new().fat_type(FatType::Fat32);
        fatfs::format_volume(&file, options.bytes_per_cluster(512)).unwrap();
        let fat = FileSystem::new(&file, FsOptions::new()).unwrap();
        for folder in ["EFI", "EFI/Linux"] {
            fat.root_dir().create_dir(folder).unwrap();
        }
        let file = fat.root_dir().create_file("EFI/Linux/casemate_1.0.0.efi");
        file.unwrap().write_all(b"running").unwrap();
        fat.unmount().unwrap();
        BootPartition { device }
    }

    pub(crate) fn names(partition: &BootPartition) -> Vec<String> {
        let mut names: Vec<_> = partition
            .images()
            .unwrap()
            .into_iter()
            .map(|entry| entry.name)
            .collect();
        names.sort();
        names
    }

    /// Renames a file, as the boot loader does.
    pub(crate) fn rename(partition: &BootPartition, from: &str, to: &str) {
        let renamed = partition.with(|_, folder| Ok(folder.rename(from, folder, to)?));
        renamed.unwrap();
    }

    fn add(partition: &BootPartition, to: &str, image: &[u8]) -> Result<(), Fault> {
        let sum = digest(&SHA256, image).as_ref().try_into().unwrap();
        let mut from = io::Cursor::new(image);
        let running = version("1.0.0");
        let bytes = image.len() as u64;
        partition.add(running, version(to), &mut from, bytes, &sum, || Ok(()))
    }

    #[test]
    fn an_image_is_added_counted_and_blessed_or_removed() {
        let folder = tempfile::tempdir().unwrap();
        let partition = partition(folder.path());
        add(&partition, "1.0.1", &[7; 100_000]).unwrap();
        assert_eq!(
            names(&partition),
            ["casemate_1.0.0.efi", "casemate_1.0.1+3.efi"]
        );
        let date = |_: &Fat, folder: &Dir<'_, File>| {
            let added = folder.iter().flatten().last();
            Ok(added.unwrap().modified().date)
        };
        assert_eq!(partition.with(date).unwrap(), FirstDay.get_current_date());
        // Another image takes its place.
        add(&partition, "1.0.2", &[8; 100_000]).unwrap();
        assert_eq!(
            names(&partition),
            ["casemate_1.0.0.efi", "casemate_1.0.2+3.efi"]
        );
        partition.bless(version("1.0.2")).unwrap();
        assert_eq!(
            names(&partition),
            ["casemate_1.0.0.efi", "casemate_1.0.2.efi"]
        );
        partition.remove(version("1.0.0")).unwrap();
        assert_eq!(names(&partition), ["casemate_1.0.2.efi"]);
    }

    #[test]
    fn what_is_not_whole_or_does_not_fit_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let partition = partition(folder.path());
        let (running, new) = (version("1.0.0"), version("1.0.1"));
        let mut image = io::Cursor::new([1; 5000]);
        let wrong = partition.add(running, new, &mut image, 5000, &[0; 32], || Ok(()));
        assert!(matches!(wrong, Err(Fault::Digest { .. })), "{wrong:?}");
        let nothing = digest(&SHA256, b"").as_ref().try_into().unwrap();
        let large = partition.add(
            running,
            new,
            &mut io::empty(),
            50 << 20,
            &nothing,
            || Ok(()),
        );
        assert!(matches!(large, Err(Fault::Full { .. })), "{large:?}");
        let sum = digest(&SHA256, &[1; 5000]).as_ref().try_into().unwrap();
        let cut = partition.add(running, new, &mut image, 5000, &sum, || {
            Err(io::Error::other("power is cut"))
        });
        assert!(matches!(cut, Err(Fault::Io(_))));
        assert_eq!(names(&partition), ["casemate_1.0.0.efi"]);
        // The incomplete file does not prevent the next try.
        add(&partition, "1.0.1", &[1; 5000]).unwrap();
    }

    #[test]
    fn names_are_the_boot_loaders() {
        let tries = |name: &str| Entry::parse(name).map(|entry| entry.tries_left);
        assert_eq!(tries("casemate_1.2.3.efi"), Some(None));
        assert_eq!(tries("casemate_1.2.3+3.efi"), Some(Some(3)));
        assert_eq!(tries("casemate_1.2.3+0-3.efi"), Some(Some(0)));
        for other in [
            "casemate.part",
            "casemate_1.2.efi",
            "casemate_1.2.3+x.efi",
            "other.efi",
            ".",
            "..",
        ] {
            assert_eq!(tries(other), None, "{other}");
        }
    }
}
