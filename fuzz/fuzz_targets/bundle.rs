//! A tenant's bundle as the worker takes it apart, with headers whose checksums are right.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../node/worker/src/bundle.rs"]
#[allow(dead_code, reason = "the worker needs more of it")]
mod bundle;

const BLOCK_BYTES: usize = 512;
const SUM: std::ops::Range<usize> = 148..156;

/// Gives every block the checksum that it would have as a header.
fn with_checksums(archive: &[u8]) -> Vec<u8> {
    let mut archive = archive.to_vec();
    for block in archive.chunks_exact_mut(BLOCK_BYTES) {
        block[257..262].copy_from_slice(b"ustar");
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
    let Some((name, rest)) = bytes.split_at_checked(100) else {
        return;
    };
    let Some((size, rest)) = rest.split_at_checked(3) else {
        return;
    };
    let mut header = [0; BLOCK_BYTES];
    header[..100].copy_from_slice(name);
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
