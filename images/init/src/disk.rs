//! The state partition, whose content alone outlives a restart.

use std::fs;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, mount as mount_at};

use crate::console::{Page, Problem, say};

/// The GPT name of the partition.
pub(crate) const PARTITION: &str = "casemate-state";
/// The GPT name of the boot partition.
const BOOT_PARTITION: &str = "casemate-boot";
/// Mount point of the state partition.
const FOLDER: &str = "/state";
/// Time for disks to appear: their drivers are loaded in parallel.
const APPEARS_WITHIN: Duration = Duration::from_secs(10);
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

const MKFS: &str = "/sbin/mke2fs";
const FSCK: &str = "/sbin/e2fsck";
/// Highest exit code of `e2fsck` that means success: nothing was wrong, or it was repaired.
const FSCK_MENDED: i32 = 1;
/// Position and value of the magic number of `ext4`.
const MAGIC_OFFSET: u64 = 1024 + 56;
const MAGIC: [u8; 2] = [0x53, 0xef];
/// Position of the time of the last mount.
const MOUNT_TIME_OFFSET: u64 = 1024 + 44;
/// Bytes at the beginning that are zero on a partition that was never used.
const HEAD_BYTES: usize = 64 * 1024;

/// A partition or disk as the kernel lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Block {
    pub(crate) device: PathBuf,
    /// The GPT name, if it is a partition with a name.
    pub(crate) name: Option<String>,
}

/// All block devices, by name.
pub(crate) fn blocks() -> io::Result<Vec<Block>> {
    let mut blocks = Vec::new();
    for entry in fs::read_dir("/sys/class/block")? {
        let entry = entry?;
        let uevent = fs::read_to_string(entry.path().join("uevent")).unwrap_or_default();
        blocks.push(Block {
            device: Path::new("/dev").join(entry.file_name()),
            name: uevent
                .lines()
                .find_map(|line| line.strip_prefix("PARTNAME="))
                .map(str::to_owned),
        });
    }
    blocks.sort_by(|a, b| a.device.cmp(&b.device));
    Ok(blocks)
}

/// Finds, checks and mounts the state partition; makes its file system at the first boot.
pub(crate) fn mount(page: &mut Page) -> Result<PathBuf, Problem> {
    let device = find()?;
    let kind = look(&device).map_err(|error| {
        Problem::new(
            format!(
                "the state partition {} cannot be read: {error}",
                device.display()
            ),
            "replace the disk; the node joins again with a new token",
        )
    })?;
    match kind {
        Content::Nothing => make(&device),
        Content::Ext4 => {
            let checked = run(Command::new(FSCK).args(["-p"]).arg(&device), FSCK_MENDED);
            match was_mounted(&device) {
                // The making of the file system was interrupted, and nothing was ever stored on it.
                Ok(false) if checked.is_err() => make(&device),
                _ => checked,
            }
        }
        // The content belongs to another system and must not be overwritten.
        Content::Other => Err(Problem::new(
            format!(
                "the partition {PARTITION} ({}) holds data that Casemate has not written",
                device.display()
            ),
            "if the data is not needed, overwrite the first 64 KiB with zeros; the file system is then made at the next boot",
        )),
    }?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::NOATIME;
    // After an error the kernel makes the file system read-only, and the node reports that.
    mount_at(&device, FOLDER, "ext4", flags, c"errors=remount-ro").map_err(|error| {
        Problem::new(
            format!(
                "the state partition {} cannot be mounted: {error}",
                device.display()
            ),
            "restart; if the failure repeats, the disk is damaged: replace it, and the node joins \
             again with a new token",
        )
    })?;
    page.line("state", format!("{} on {}", PARTITION, device.display()));
    Ok(FOLDER.into())
}

/// The boot partition on the same disk as the state partition.
pub(crate) fn boot_partition() -> Option<PathBuf> {
    let place = |device: &Path| {
        let entry = Path::new("/sys/class/block").join(device.file_name()?);
        Some(fs::canonicalize(entry).ok()?.parent()?.to_owned())
    };
    let blocks = blocks().ok()?;
    let named = |name: &'static str| {
        let mut all = blocks.iter();
        all.find(|block| block.name.as_deref() == Some(name))
    };
    let disk = place(&named(PARTITION)?.device)?;
    let boot = blocks.iter().find(|block| {
        block.name.as_deref() == Some(BOOT_PARTITION) && place(&block.device) == Some(disk.clone())
    });
    Some(boot?.device.clone())
}

fn make(device: &Path) -> Result<(), Problem> {
    say("making the file system of the state partition");
    let lazy = "lazy_itable_init=1,lazy_journal_init=1";
    let mut command = Command::new(MKFS);
    command.args([
        "-q", "-F", "-t", "ext4", "-m", "0", "-L", PARTITION, "-E", lazy,
    ]);
    run(command.arg(device), 0)
}

/// Whether the file system was ever mounted.
fn was_mounted(device: &Path) -> io::Result<bool> {
    let mut time = [0; 4];
    fs::File::open(device)?.read_exact_at(&mut time, MOUNT_TIME_OFFSET)?;
    Ok(time != [0; 4])
}

fn find() -> Result<PathBuf, Problem> {
    let until = Instant::now() + APPEARS_WITHIN;
    loop {
        let blocks = blocks().unwrap_or_default();
        let mut named = blocks
            .into_iter()
            .filter(|block| block.name.as_deref() == Some(PARTITION));
        match (named.next(), named.next()) {
            (Some(one), None) => return Ok(one.device),
            (Some(one), Some(other)) => {
                return Err(Problem::new(
                    format!(
                        "two partitions are named {PARTITION}: {} and {}",
                        one.device.display(),
                        other.device.display()
                    ),
                    "detach the disk that does not belong to this node",
                ));
            }
            (None, _) if Instant::now() > until => {
                return Err(Problem::new(
                    format!("no partition is named {PARTITION}"),
                    "attach the disk that the image was written to, or make a GPT partition with that name",
                ));
            }
            (None, _) => std::thread::sleep(LOOK_INTERVAL),
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Content {
    Nothing,
    Ext4,
    Other,
}

fn look(device: &Path) -> io::Result<Content> {
    let file = fs::File::open(device)?;
    let mut magic = [0; 2];
    file.read_exact_at(&mut magic, MAGIC_OFFSET)?;
    if magic == MAGIC {
        return Ok(Content::Ext4);
    }
    let mut head = vec![0; HEAD_BYTES];
    file.read_exact_at(&mut head, 0)?;
    let is_empty = head.iter().all(|byte| *byte == 0);
    Ok(if is_empty {
        Content::Nothing
    } else {
        Content::Other
    })
}

/// Runs a tool to its end; `most` is the highest exit code that means success.
fn run(command: &mut Command, most: i32) -> Result<(), Problem> {
    let name = command.get_program().to_string_lossy().into_owned();
    let failed = |why: String| {
        Problem::new(
            format!("{name} failed on the state partition: {why}"),
            "restart; if the failure repeats, the disk is damaged: replace it, and the node joins \
             again with a new token",
        )
    };
    let output = command
        .env_clear()
        .stdin(Stdio::null())
        .output()
        .map_err(|error| failed(error.to_string()))?;
    match output.status.code() {
        Some(code) if code <= most => Ok(()),
        _ => {
            let said = [&output.stdout[..], b"; ", &output.stderr].concat();
            let said = String::from_utf8_lossy(&said).trim().replace('\n', "; ");
            Err(failed(format!("{}: {said}", output.status)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_empty_partition_is_taken_for_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        let kind = |at: usize, bytes: &[u8]| {
            let mut disk = vec![0; 2 * HEAD_BYTES];
            disk[at..at + bytes.len()].copy_from_slice(bytes);
            fs::write(&path, &disk).unwrap();
            look(&path).unwrap()
        };
        assert_eq!(kind(0, b""), Content::Nothing);
        assert_eq!(kind(1024 + 56, &MAGIC), Content::Ext4);
        assert_eq!(kind(0, b"XFSB"), Content::Other);
        assert_eq!(kind(HEAD_BYTES - 1, b"x"), Content::Other);
        fs::write(&path, b"short").unwrap();
        assert!(look(&path).is_err());
    }
}
