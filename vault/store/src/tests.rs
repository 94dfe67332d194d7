//! Damaged files, kills, and a failing disk.

use std::fs;

use super::*;

fn random(bytes: &mut [u8]) {
    let filled = ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), bytes);
    assert!(filled.is_ok());
}

fn key() -> Zeroizing<[u8; KEY_BYTES]> {
    Zeroizing::new([7; KEY_BYTES])
}

fn put(name: &str, bytes: &[u8]) -> Write {
    Write::Put(Kind::Tenant, name.into(), bytes.to_vec())
}

fn all(store: &Store) -> (Vec<Named>, SetAside) {
    let mut aside = SetAside::default();
    (store.all(Kind::Tenant, &mut aside).unwrap(), aside)
}

fn remember(store: &Store, frames: &[&[u8]]) {
    let frames = frames.iter().map(|frame| frame.to_vec());
    store.write_memory(frames, &mut random).unwrap();
}

/// Appends a frame to the memory, together with a record.
fn append(store: &Store, frame: &[u8]) {
    let record = [put("a", frame)];
    store
        .commit(&record, Some(frame), Room::Free, &mut random)
        .unwrap();
}

fn remembered(store: &Store) -> Vec<Vec<u8>> {
    match store.read_memory().unwrap().unwrap() {
        StoredMemory::Frames(frames) => frames.iter().map(|frame| frame.to_vec()).collect(),
        StoredMemory::Whole(_) => panic!("a memory of an earlier format"),
    }
}

#[test]
fn what_was_committed_is_there_again_and_sealed() {
    let folder = tempfile::tempdir().unwrap();
    let (store, aside) = Store::open(folder.path(), &key()).unwrap();
    assert!(aside.is_empty());
    store
        .commit(
            &[
                put("a", b"the plain text"),
                put("b", b"2"),
                Write::Drop(Kind::Tenant, "b".into()),
            ],
            None,
            Room::Free,
            &mut random,
        )
        .unwrap();
    remember(&store, &[b"remember me"]);
    drop(store);
    let (store, _) = Store::open(folder.path(), &key()).unwrap();
    assert_eq!(
        all(&store).0,
        [("a".to_owned(), Zeroizing::new(b"the plain text".to_vec()))]
    );
    assert_eq!(remembered(&store), [b"remember me"]);
    assert!(store.read(StateFile::Identity).unwrap().is_none());
    assert_eq!(
        store.get(Kind::Tenant, "a").unwrap().unwrap().as_slice(),
        b"the plain text"
    );
    let disk: Vec<u8> = ["records/db", "memory"]
        .iter()
        .flat_map(|name| fs::read(folder.path().join(name)).unwrap())
        .collect();
    for plain in [&b"the plain text"[..], b"remember me"] {
        assert!(!disk.windows(plain.len()).any(|window| window == plain));
    }
}

#[test]
fn a_second_vault_learns_that_the_store_is_in_use() {
    let folder = tempfile::tempdir().unwrap();
    let _first = Store::open(folder.path(), &key()).unwrap();
    assert!(matches!(
        Store::open(folder.path(), &key()),
        Err(StoreError::Locked(_))
    ));
}

#[test]
fn a_snapshot_that_a_kill_left_half_written_is_harmless() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(folder.path(), &key()).unwrap();
    store
        .commit(&[put("a", b"1")], None, Room::Free, &mut random)
        .unwrap();
    drop(store);
    fs::write(
        folder
            .path()
            .join("records/snap.0000000000000010.generating"),
        b"",
    )
    .unwrap();
    let (store, aside) = Store::open(folder.path(), &key()).unwrap();
    assert!(aside.is_empty());
    assert_eq!(all(&store).0.len(), 1);
}

#[test]
fn a_store_that_cannot_be_opened_is_set_aside_and_state_files_stay() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(folder.path(), &key()).unwrap();
    store
        .commit(&[put("a", b"1")], None, Room::Free, &mut random)
        .unwrap();
    remember(&store, &[b"m"]);
    drop(store);
    fs::write(
        folder.path().join("records/conf"),
        b"this is no configuration of any version",
    )
    .unwrap();
    let (store, aside) = Store::open(folder.path(), &key()).unwrap();
    let place = aside.records.unwrap();
    assert!(place.join("db").is_file(), "the damaged store is kept");
    assert!(all(&store).0.is_empty());
    assert_eq!(remembered(&store), [b"m"]);
}

/// Records of a usual node: several of sled's segments, and one record too large for any.
fn many() -> Vec<Named> {
    let bytes = |at: u8| Zeroizing::new(vec![at; if at == 7 { 200_000 } else { 15_000 }]);
    (0..40).map(|at| (format!("{at:02}"), bytes(at))).collect()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let paths = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let (folders, mut found): (Vec<_>, Vec<_>) = paths.partition(|path| path.is_dir());
    found.extend(folders.iter().flat_map(|folder| files(folder)));
    found.sort();
    found
}

/// A byte of each of sled's files, over their whole length.
fn flips(records: &Path) -> Vec<(PathBuf, usize)> {
    const EACH: usize = 40;
    let places = files(records).into_iter().flat_map(|file| {
        let length = fs::metadata(&file).unwrap().len() as usize;
        let step = (length / EACH).max(1);
        let file = file.strip_prefix(records).unwrap().to_owned();
        (0..length).step_by(step).map(move |at| (file.clone(), at))
    });
    places.collect()
}

fn flip(file: &Path, at: usize) {
    let mut bytes = fs::read(file).unwrap();
    bytes[at] ^= 0x55;
    fs::write(file, bytes).unwrap();
}

/// With one wrong byte anywhere, either every record is there, or the store is set aside and an
/// empty one works. sled finds most of the damage only when it reads, and panics on some.
#[test]
fn damage_that_sled_finds_late_sets_the_store_aside_and_nothing_panics() {
    let original = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(original.path(), &key()).unwrap();
    for (name, bytes) in many() {
        store
            .commit(&[put(&name, &bytes)], None, Room::Free, &mut random)
            .unwrap();
    }
    remember(&store, &[b"m"]);
    drop(store);
    // Opened once more, so that sled has recorded the position of its pages.
    drop(Store::open(original.path(), &key()).unwrap());
    let memory = fs::read(original.path().join("memory")).unwrap();
    let (mut whole, mut at_open, mut at_reading) = (0, 0, 0);
    for (file, at) in flips(&original.path().join("records")) {
        let folder = tempfile::tempdir().unwrap();
        copy(original.path(), folder.path());
        flip(&folder.path().join("records").join(&file), at);
        let (store, aside) = Store::open(folder.path(), &key()).unwrap();
        let (held, single) = all(&store);
        assert!(single.is_empty());
        match aside.records {
            None => {
                assert_eq!(held, many(), "{} at {at}", file.display());
                whole += 1;
            }
            Some(place) => {
                assert!(held.is_empty() && place.join("db").is_file());
                store
                    .commit(&[put("a", b"1")], None, Room::Free, &mut random)
                    .unwrap();
                assert_eq!(all(&store).0.len(), 1);
                let records = folder.path().join("again");
                copy(&original.path().join("records"), &records);
                flip(&records.join(&file), at);
                let opens = records::Records::opens(&records);
                *(if opens { &mut at_reading } else { &mut at_open }) += 1;
            }
        }
        assert_eq!(fs::read(folder.path().join("memory")).unwrap(), memory);
        assert_eq!(remembered(&store), [b"m"]);
    }
    println!("whole {whole}, found at opening {at_open}, at reading {at_reading}");
    assert!(
        whole > 0 && at_open > 0 && at_reading > 10,
        "{whole} {at_open} {at_reading}"
    );
}

#[test]
fn records_under_another_name_or_key_are_set_aside() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(folder.path(), &key()).unwrap();
    store
        .commit(
            &[put("a", b"1"), put("b", b"2")],
            None,
            Room::Free,
            &mut random,
        )
        .unwrap();
    let stolen = store.records_for_test().get("tenant/a").unwrap().unwrap();
    store.records_for_test().insert("tenant/b", stolen).unwrap();
    let (held, aside) = all(&store);
    assert_eq!(held.len(), 1);
    assert_eq!(aside.single.len(), 1);
    assert!(aside.single[0].place.is_file());
    assert!(all(&store).1.is_empty(), "once");
    drop(store);
    let (store, _) = Store::open(folder.path(), &Zeroizing::new([8; KEY_BYTES])).unwrap();
    assert_eq!(all(&store).0.len(), 0);
}

#[test]
fn flipped_truncated_and_empty_state_files_do_not_open() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(folder.path(), &key()).unwrap();
    store
        .write(StateFile::Identity, b"who I am", &mut random)
        .unwrap();
    let path = folder.path().join("identity");
    let whole = fs::read(&path).unwrap();
    let mut flipped = whole.clone();
    flipped[20] ^= 1;
    for damaged in [&flipped[..], &whole[..10], &[]] {
        fs::write(&path, damaged).unwrap();
        assert!(matches!(
            store.read(StateFile::Identity),
            Err(StoreError::Sealed(_))
        ));
    }
    fs::write(folder.path().join("memory"), &whole).unwrap();
    assert!(
        matches!(store.read_memory(), Err(StoreError::Sealed(_))),
        "one file cannot stand in for another"
    );
    let aside = store.set_memory_aside().unwrap();
    assert!(aside.is_file() && store.read_memory().unwrap().is_none());
}

/// A memory with a base of two frames and three appended ones, and the end of each.
fn log(folder: &Path) -> (Vec<u8>, Vec<usize>) {
    let path = folder.join("memory");
    let (store, _) = Store::open(folder, &key()).unwrap();
    remember(&store, &[b"one", b"two"]);
    let mut ends = vec![fs::read(&path).unwrap().len()];
    for frame in [&b"three"[..], b"four", &[5; 300]] {
        append(&store, frame);
        ends.push(fs::read(&path).unwrap().len());
    }
    (fs::read(&path).unwrap(), ends)
}

#[test]
fn a_memory_grows_by_what_is_appended_and_is_read_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(folder.path(), &key()).unwrap();
    let early = store.commit(&[put("a", b"1")], Some(b"x"), Room::Free, &mut random);
    assert!(matches!(early, Err(StoreError::MemoryNotBegun)));
    assert!(all(&store).0.is_empty(), "a held-back frame is not written");
    drop(store);
    let (bytes, ends) = log(folder.path());
    assert_eq!(ends[3], bytes.len());
    assert!(ends[1] - ends[0] < 5 + 50);
    let (store, _) = Store::open(folder.path(), &key()).unwrap();
    let expected = [&b"one"[..], b"two", b"three", b"four", &[5; 300]];
    assert_eq!(remembered(&store), expected);
    // A process that has read the memory writes a base of its own before it appends.
    remember(&store, &expected);
    append(&store, b"six");
    assert_eq!(remembered(&store)[5], b"six");
}

/// The state after a kill or a power cut: the last frame ends early, or its last blocks read as
/// zeros.
#[test]
fn a_write_to_the_memory_that_was_cut_short_takes_nothing_else_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let (bytes, ends) = log(folder.path());
    let (before, last) = (ends[2], ends[3]);
    let (store, _) = Store::open(folder.path(), &key()).unwrap();
    let whole = remembered(&store);
    for cut in before..last {
        let mut zeros = bytes[..cut].to_vec();
        zeros.resize(last, 0);
        for torn in [&bytes[..cut], &zeros] {
            fs::write(folder.path().join("memory"), torn).unwrap();
            // Zeros in place of less than a tag are damage, because no block is so small.
            if torn.len() == last && last - cut < 16 {
                continue;
            }
            assert_eq!(remembered(&store), whole[..4], "cut at {cut}");
        }
    }
}

/// With one wrong byte anywhere in a complete file, the memory does not open.
#[test]
fn a_memory_that_is_damaged_does_not_open_in_part() {
    let folder = tempfile::tempdir().unwrap();
    let (bytes, ends) = log(folder.path());
    let path = folder.path().join("memory");
    let (store, _) = Store::open(folder.path(), &key()).unwrap();
    let fails = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        matches!(store.read_memory(), Err(StoreError::Sealed(_)))
    };
    for at in 0..bytes.len() {
        let mut flipped = bytes.clone();
        flipped[at] ^= 0x10;
        assert!(fails(&flipped), "byte {at}");
    }
    assert!(fails(&bytes[..ends[0] - 1]), "a part of the base");
    // The third frame is left out, repeated, or of another log.
    let frame = |at: usize| &bytes[ends[at]..ends[at + 1]];
    assert!(fails(&[&bytes[..ends[0]], frame(1), frame(2)].concat()));
    assert!(fails(&[&bytes[..ends[1]], frame(0), frame(1)].concat()));
    let other = tempfile::tempdir().unwrap();
    let (foreign, _) = log(other.path());
    assert!(fails(&[&bytes[..ends[0]], &foreign[ends[0]..]].concat()));
    assert!(!fails(&bytes));
}

/// The file of the programs before, sealed with its name.
#[test]
fn a_memory_of_the_format_before_is_read_and_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("memory");
    let (store, _) = Store::open(folder.path(), &key()).unwrap();
    let sealer = sealing::Sealer::new(&key()).unwrap();
    let sealed = sealer
        .seal("memory", b"{\"fleet\":1}", &mut random)
        .unwrap();
    fs::write(&path, &sealed).unwrap();
    let whole = StoredMemory::Whole(Zeroizing::new(b"{\"fleet\":1}".to_vec()));
    assert_eq!(store.read_memory().unwrap(), Some(whole));
    remember(&store, &[b"one"]);
    assert_eq!(remembered(&store), [b"one"]);
    fs::write(&path, &sealed[1..]).unwrap();
    assert!(matches!(store.read_memory(), Err(StoreError::Sealed(_))));
}

#[test]
fn a_memory_is_long_when_more_was_appended_than_its_base_holds() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(folder.path(), &key()).unwrap();
    for base in [10, 600_000] {
        remember(&store, &[&vec![1; base]]);
        assert!(!store.is_memory_long());
        let most = base.max(256 * 1024);
        append(&store, &vec![2; most - 100]);
        assert!(!store.is_memory_long());
        append(&store, &[3; 200]);
        assert!(store.is_memory_long());
    }
}

impl Store {
    fn records_for_test(&self) -> sled::Db {
        self.records.db()
    }
}

/// Every file below a folder.
fn snapshot(folder: &Path) -> std::collections::BTreeMap<PathBuf, Vec<u8>> {
    let mut found = std::collections::BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(snapshot(&path));
        } else {
            let bytes = fs::read(&path).unwrap();
            found.insert(path, bytes);
        }
    }
    found
}

#[test]
fn what_a_newer_vault_has_written_is_refused_and_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(folder.path(), &key()).unwrap();
    remember(&store, &[b"remember me"]);
    drop(store);
    let mark = folder.path().join(MARK);
    assert_eq!(fs::read(&mark).unwrap(), FORMAT.mark());
    for wrong in [r#"{"format":3,"software":"9.0.0"}"#, "", "{}"] {
        fs::write(&mark, wrong).unwrap();
        let before = snapshot(folder.path());
        let error = Store::open(folder.path(), &key()).unwrap_err();
        assert!(matches!(error, StoreError::Format { .. }), "{error}");
        let refused = must_be_readable(folder.path()).unwrap_err();
        let cause = std::error::Error::source(&refused).unwrap().to_string();
        assert_eq!(
            cause.contains("casemate 9.0.0"),
            wrong.contains('9'),
            "{cause}"
        );
        assert_eq!(snapshot(folder.path()), before);
    }
    // A folder from before there were marks.
    fs::remove_file(&mark).unwrap();
    let (store, aside) = Store::open(folder.path(), &key()).unwrap();
    assert!(aside.is_empty() && mark.exists());
    assert_eq!(remembered(&store), [b"remember me"]);
}
