//! A disk that somebody plugs in, labelled as a seed: FAT with damaged bytes.
#![no_main]

use std::fs::File;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::panic;
use std::path::PathBuf;
use std::sync::{Once, OnceLock};

use fatfs::{FatType, FileSystem, FormatVolumeOptions, FsOptions};
use libfuzzer_sys::fuzz_target;
use rustix::fs::{MemfdFlags, memfd_create};

/// What `volume` needs of init.
mod console {
    pub(crate) struct Problem;

    impl Problem {
        pub(crate) fn new(_: impl Into<String>, _: impl Into<String>) -> Self {
            Self
        }
    }

    #[derive(Default)]
    pub(crate) struct Page {
        pub(crate) problems: usize,
    }

    impl Page {
        pub(crate) fn problem(&mut self, _: Problem) {
            self.problems += 1;
        }
    }
}

mod disk {
    use std::cell::RefCell;
    use std::io;
    use std::path::PathBuf;

    thread_local! {
        pub(crate) static DEVICE: RefCell<PathBuf> = RefCell::default();
    }

    pub(crate) struct Block {
        pub(crate) device: PathBuf,
        pub(crate) name: Option<String>,
    }

    pub(crate) fn blocks() -> io::Result<Vec<Block>> {
        let device = DEVICE.with_borrow(Clone::clone);
        let name = Some("CASEMATE_SEED".into());
        Ok(vec![Block { device, name }])
    }
}

#[path = "../../images/init/src/seed/volume.rs"]
mod volume;

const MAX_FILE_BYTES: usize = 64 * 1024;

/// Reads every file of the disk, and wipes one.
fn read_and_wipe() {
    let mut page = console::Page::default();
    for volume in volume::find(&mut page) {
        for (name, bytes) in volume.files(&mut page) {
            assert!(bytes.len() <= MAX_FILE_BYTES + 1, "{name} is not cut");
        }
        let is_wiped = volume.wipe("join-token").is_ok();
        let left = volume.files(&mut page);
        if is_wiped && page.problems == 0 {
            assert!(!left.iter().any(|(name, _)| name == "join-token"));
        }
    }
}

/// Disks without damage: FAT12, FAT16 and FAT32, each with a token, a longer file and a folder.
fn disks() -> &'static [Vec<u8>] {
    static DISKS: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    DISKS.get_or_init(|| {
        let sizes = [
            (FatType::Fat12, 128 << 10),
            (FatType::Fat16, 4 << 20),
            (FatType::Fat32, 36 << 20),
        ];
        sizes.map(|(kind, bytes)| disk(kind, bytes)).into()
    })
}

fn disk(kind: FatType, bytes: u64) -> Vec<u8> {
    let file = memory();
    file.set_len(bytes).expect("memory");
    let options = FormatVolumeOptions::new()
        .fat_type(kind)
        .bytes_per_cluster(512)
        .volume_label(*b"CASEMATE   ");
    fatfs::format_volume(&file, options).expect("a format");
    let fat = FileSystem::new(&file, FsOptions::new()).expect("a file system");
    let root = fat.root_dir();
    let mut token = root.create_file("join-token").expect("a file");
    token.write_all(b"casemate-join-THE-TOKEN").expect("room");
    let mut config = root.create_file("node.toml").expect("a file");
    config.write_all(&[b'#'; 3000]).expect("room");
    root.create_dir("folder").expect("a folder");
    drop((token, config, root));
    fat.unmount().expect("an end");
    let mut all = vec![0; usize::try_from(bytes).expect("small")];
    file.read_exact_at(&mut all, 0).expect("what was written");
    all
}

fn memory() -> File {
    memfd_create("seed", MemfdFlags::CLOEXEC)
        .expect("memory")
        .into()
}

/// What is written of a disk: everything before its first files, and these.
const WRITTEN_BYTES: usize = 1 << 20;
/// Where damage matters: boot sector, tables and the root, which a disk begins with.
const HEAD_BYTES: usize = 24 * 1024;

/// A panic of `fatfs` is caught by the reader and is no finding; any other is.
fn expect_panics_of_fatfs() {
    static DONE: Once = Once::new();
    DONE.call_once(|| {
        let report = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let place = info.location().map_or("", |location| location.file());
            if !place.contains("/fatfs-") {
                report(info);
            }
        }));
    });
}

fuzz_target!(|input: (u8, Vec<(u16, u8)>)| {
    let (kind, damage) = input;
    expect_panics_of_fatfs();
    let disks = disks();
    // The large one rarely: it takes time to write.
    let kind = usize::from(if kind < 8 { 2 } else { kind % 2 });
    let mut file = memory();
    file.set_len(disks[kind].len() as u64).expect("memory");
    let mut head = disks[kind][..disks[kind].len().min(WRITTEN_BYTES)].to_vec();
    for (at, byte) in damage {
        head[usize::from(at) % HEAD_BYTES] = byte;
    }
    file.seek(SeekFrom::Start(0)).expect("a start");
    file.write_all(&head).expect("room");
    disk::DEVICE.set(PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd())));
    read_and_wipe();
});
