//! A tenant's bundle as the worker takes it apart, with headers whose checksums are right.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../node/worker/src/bundle.rs"]
#[allow(dead_code, reason = "the worker needs more of it")]
mod bundle;

const BLOCK_BYTES: usize = 512;
const SUM: std::ops::Range<usize> = 148..156;
const MAGIC: std::ops::Range<usize> = 257..265;
const NAME_BYTES: usize = 100;
/// What names are spelled with, so that many are taken.
const ALPHABET: &[u8] = b"../aZ9-_\\%";

/// A name of these bytes: as they are, or spelled with letters of names and with an ending.
fn spelled(bytes: &[u8]) -> [u8; NAME_BYTES] {
    let mut name = [0; NAME_BYTES];
    match bytes[0] {
        first if first < 128 => {
            let length = usize::from(first % 64);
            for (to, from) in name[..length].iter_mut().zip(&bytes[1..]) {
                *to = ALPHABET[usize::from(*from) % ALPHABET.len()];
            }
            name[length..length + 3].copy_from_slice(b".js");
        }
        _ => name.copy_from_slice(bytes),
    }
    name
}

/// Gives every block the checksum that it would have as a header.
fn with_checksums(archive: &[u8]) -> Vec<u8> {
    let mut archive = archive.to_vec();
    for block in archive.chunks_exact_mut(BLOCK_BYTES) {
        block[MAGIC].copy_from_slice(b"ustar\x0000");
        block[SUM].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[SUM].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    // What ends an archive.
    archive.resize(archive.len() + 2 * BLOCK_BYTES, 0);
    archive
}

fuzz_target!(|bytes: &[u8]| {
    let _ = bundle::Bundle::parse(bytes);
    // A name and a size, then what fills the header and the file.
    let Some((name, rest)) = bytes.split_at_checked(NAME_BYTES) else {
        return;
    };
    let Some((size, rest)) = rest.split_at_checked(3) else {
        return;
    };
    let name = &spelled(name)[..];
    let mut header = [0; BLOCK_BYTES];
    header[..NAME_BYTES].copy_from_slice(name);
    let size = size
        .iter()
        .fold(0, |size, digit| size * 8 + u32::from(*digit % 8));
    header[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
    let padded = (size as usize).next_multiple_of(BLOCK_BYTES);
    let mut archive = header.to_vec();
    archive.extend(
        rest.iter()
            .copied()
            .chain(std::iter::repeat(0))
            .take(padded),
    );
    archive.extend(rest.iter().skip(padded));
    let archive = with_checksums(&archive);
    if let Ok(bundle) = bundle::Bundle::parse(&archive) {
        let name = name.split(|byte| *byte == 0).next().unwrap_or(name);
        let name = std::str::from_utf8(name).expect("a name that was taken");
        if !name.is_empty() && archive[345] == 0 {
            let module = bundle.get(name).expect("the first file under its name");
            assert_eq!(module.bytes.len(), size as usize);
        }
        assert!(!name.starts_with('/') && !name.contains('\\'));
        assert!(!name.split('/').any(|part| part == ".." || part == "."));
    }
});
