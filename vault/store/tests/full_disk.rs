//! A disk that another program fills to its last byte.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
#![allow(clippy::print_stdout, reason = "prints what was measured or skipped")]

mod disk;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use casemate_vault_store::{KEY_BYTES, Kind, Room, Store, StoreError, StoredMemory, Write};
use disk::{empty, fill, on_a_disk};
use zeroize::Zeroizing;

const MANIFEST: usize = 6000;
const SECRET: usize = 2000;

fn random(bytes: &mut [u8]) {
    let filled = ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), bytes);
    assert!(filled.is_ok());
}

fn open(disk: &Path) -> Store {
    let (store, aside) = Store::open(&disk.join("vault"), &Zeroizing::new([7; KEY_BYTES])).unwrap();
    assert!(aside.is_empty(), "{aside:?}");
    store
}

fn manifest(version: u8, bytes: usize) -> Write {
    Write::Put(Kind::Manifest, "tenant".into(), vec![version; bytes])
}

fn secret(number: usize) -> Write {
    Write::Put(Kind::Object, format!("{number}"), vec![1; SECRET])
}

/// A tenant with so many secrets, and a memory that names its manifest.
fn deployed(disk: &Path, secrets: usize) -> Store {
    let store = open(disk);
    store.write_memory([].into_iter(), &mut random).unwrap();
    let mut writes: Vec<_> = (0..secrets).map(secret).collect();
    writes.push(manifest(1, MANIFEST));
    store
        .commit(&writes, Some(&[1; 500]), Room::Free, &mut random)
        .unwrap();
    store
}

fn remembered(store: &Store) -> Vec<Vec<u8>> {
    match store.read_memory().unwrap().unwrap() {
        StoredMemory::Frames(frames) => frames.iter().map(|frame| frame.to_vec()).collect(),
        StoredMemory::Whole(_) => panic!("a memory of an earlier format"),
    }
}

fn is_full<T>(done: Result<T, StoreError>) -> bool {
    matches!(done, Err(StoreError::Full(_)))
}

fn names(folder: &Path) -> Vec<PathBuf> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    names.sort();
    names
}

fn used(disk: &Path) -> u64 {
    names(disk)
        .iter()
        .map(|path| {
            let found = fs::symlink_metadata(path).unwrap();
            if found.is_dir() {
                used(path)
            } else {
                found.len()
            }
        })
        .sum()
}

#[test]
fn a_withdrawal_is_written_and_growth_is_not() {
    on_a_disk("a_withdrawal_is_written_and_growth_is_not", 64, |disk| {
        let store = deployed(disk, 10);
        let whole = store.fill_reserve();
        assert_eq!(whole.held, whole.wanted);
        fill(disk);
        // However often it is tried, growth uses none of the reserve and leaves nothing behind.
        let before = (names(&disk.join("vault")), used(&disk.join("vault")));
        for number in 0..200 {
            let writes = [secret(100 + number), manifest(2, MANIFEST)];
            let grown = store.commit(&writes, Some(&[2; 500]), Room::Free, &mut random);
            assert!(is_full(grown), "{number}");
        }
        assert_eq!(store.fill_reserve(), whole);
        assert_eq!(
            (names(&disk.join("vault")), used(&disk.join("vault"))),
            before
        );
        let withdrawn = [
            manifest(2, MANIFEST - 100),
            Write::Drop(Kind::Object, "3".into()),
        ];
        store
            .commit(&withdrawn, Some(&[2; 500]), Room::Withdrawal, &mut random)
            .unwrap();
        fill(disk);
        drop(store);
        // The next start, on a disk that is still full.
        let store = open(disk);
        let held = store.get(Kind::Manifest, "tenant").unwrap().unwrap();
        assert_eq!(held.as_slice(), vec![2; MANIFEST - 100]);
        assert_eq!(store.get(Kind::Object, "3").unwrap(), None);
        assert!(store.get(Kind::Object, "4").unwrap().is_some());
        assert_eq!(remembered(&store).last(), Some(&vec![2; 500]));
        let grown = store.commit(&[secret(100)], None, Room::Free, &mut random);
        assert!(is_full(grown), "the reserve is not whole");
        empty(disk);
        assert_eq!(store.fill_reserve(), whole);
        store
            .commit(&[secret(100)], None, Room::Free, &mut random)
            .unwrap();
    });
}

/// Writes withdrawals of one size until the reserve is used up, but at most so many, while a
/// neighbour takes every byte in between.
fn withdrawals(disk: &Path, bytes: usize, most: u32) -> u32 {
    let store = deployed(disk, 20);
    let first = [manifest(0, bytes)];
    store.commit(&first, None, Room::Free, &mut random).unwrap();
    fill(disk);
    let written = (1..=most).take_while(|version| {
        let withdrawn = [manifest((version % 200) as u8, bytes)];
        let memory = Some(&[2; 500][..]);
        let done = store.commit(&withdrawn, memory, Room::Withdrawal, &mut random);
        fill(disk);
        done.is_ok()
    });
    let written = written.count() as u32;
    assert!(!store.is_broken());
    let root = [Write::Put(
        Kind::Revocations,
        "newest".into(),
        vec![1; 700_000],
    )];
    store
        .commit(&root, Some(&[3; 500]), Room::Root, &mut random)
        .unwrap();
    println!(
        "{bytes} bytes: {written} withdrawals; {} KiB of the reserve are left, the records take {} KiB",
        store.fill_reserve().held >> 10,
        used(&disk.join("vault/records")) >> 10,
    );
    drop(store);
    empty(disk);
    fs::remove_dir_all(disk.join("vault")).unwrap();
    written
}

#[test]
fn the_reserve_lasts_and_the_roots_part_is_the_roots() {
    let name = "the_reserve_lasts_and_the_roots_part_is_the_roots";
    on_a_disk(name, 128, |disk| {
        assert_eq!(withdrawals(disk, 6000, 300), 300);
        assert!(withdrawals(disk, 60_000, 100) >= 50);
        assert!(withdrawals(disk, 600_000, 40) >= 10);
    });
}

#[test]
fn after_a_failed_write_nothing_blocks_and_nothing_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let store = deployed(folder.path(), 3);
    // Large data goes to a file of its own, which cannot be made any more.
    fs::remove_dir_all(folder.path().join("vault/records/blobs")).unwrap();
    let large = [manifest(2, 600_000)];
    let failed = store.commit(&large, Some(&[2; 500]), Room::Withdrawal, &mut random);
    assert!(failed.is_err() && store.is_broken());
    for _ in 0..3 {
        let failed = store.commit(&[secret(9)], None, Room::Root, &mut random);
        assert!(matches!(failed, Err(StoreError::Broken(_))));
        let read = store.get(Kind::Manifest, "tenant");
        assert!(matches!(read, Err(StoreError::Broken(_))));
    }
    drop(store);
    // A copy of the files, as the successor of a killed process finds them.
    let successor = tempfile::tempdir().unwrap();
    let copied = Command::new("cp")
        .arg("-a")
        .args([folder.path().join("vault"), successor.path().join("vault")])
        .status();
    assert!(copied.unwrap().success());
    let store = open(successor.path());
    assert_eq!(remembered(&store), [[1; 500]]);
    assert_eq!(
        store.get(Kind::Manifest, "tenant").unwrap().unwrap().len(),
        MANIFEST
    );
    store
        .commit(&[manifest(3, 600_000)], None, Room::Free, &mut random)
        .unwrap();
}
