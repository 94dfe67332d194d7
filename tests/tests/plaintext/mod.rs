//! A secret's plaintext, looked for in every file below a folder.

use std::fs;
use std::path::Path;

/// The forms in which plaintext is recognised.
fn forms(secret: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    let percent: String = secret
        .iter()
        .map(|byte| {
            if byte.is_ascii_alphanumeric() || b"-._~".contains(byte) {
                (*byte as char).to_string()
            } else {
                format!("%{byte:02X}")
            }
        })
        .collect();
    let mut forms = vec![
        ("raw", secret.to_vec()),
        ("hex", hex.clone().into_bytes()),
        ("upper-case hex", hex.to_ascii_uppercase().into_bytes()),
        ("percent", percent.clone().into_bytes()),
        (
            "lower-case percent",
            percent.to_ascii_lowercase().into_bytes(),
        ),
    ];
    for shift in 0..3usize {
        let padded = [vec![0; shift], secret.to_vec()].concat();
        let (skip, whole) = ([0, 2, 3][shift], padded.len() * 8 / 6);
        forms.push(("base64", base64(&padded, b"+/")[skip..whole].to_vec()));
        forms.push(("base64url", base64(&padded, b"-_")[skip..whole].to_vec()));
    }
    forms
}

fn base64(bytes: &[u8], last: &[u8; 2]) -> Vec<u8> {
    let letters: Vec<u8> = (b'A'..=b'Z')
        .chain(b'a'..=b'z')
        .chain(b'0'..=b'9')
        .chain(*last)
        .collect();
    let mut text = Vec::new();
    for chunk in bytes.chunks(3) {
        let mut group = [0; 3];
        group[..chunk.len()].copy_from_slice(chunk);
        let bits = u32::from(group[0]) << 16 | u32::from(group[1]) << 8 | u32::from(group[2]);
        (0..4).for_each(|at| text.push(letters[(bits >> (18 - 6 * at) & 63) as usize]));
    }
    text
}

/// Panics with file and form if the secret is anywhere below `folder`.
pub(crate) fn must_not_be_below(folder: &Path, secret: &[u8]) {
    let forms = forms(secret);
    let (mut files, mut todo) = (0, vec![folder.to_owned()]);
    while let Some(path) = todo.pop() {
        let Ok(kind) = fs::symlink_metadata(&path) else {
            continue;
        };
        if kind.is_dir() {
            todo.extend(
                fs::read_dir(&path)
                    .expect("readable")
                    .flatten()
                    .map(|entry| entry.path()),
            );
        } else if kind.is_file() {
            files += 1;
            let bytes = fs::read(&path).expect("readable");
            for (form, needle) in &forms {
                let found = bytes
                    .windows(needle.len())
                    .any(|window| window == needle.as_slice());
                assert!(!found, "the secret is in {} as {form}", path.display());
            }
        }
    }
    assert!(files > 20, "only {files} files were looked at");
}

#[test]
fn plaintext_is_found_in_each_form() {
    let folder = tempfile::tempdir().expect("a folder");
    (0..30).for_each(|number| {
        fs::write(folder.path().join(number.to_string()), "nothing").expect("written");
    });
    must_not_be_below(folder.path(), b"hunter2+/hunter2");
    for (form, needle) in forms(b"hunter2+/hunter2") {
        fs::write(
            folder.path().join("0"),
            [b"xx", &needle[..], b"yy"].concat(),
        )
        .expect("written");
        let looked =
            std::panic::catch_unwind(|| must_not_be_below(folder.path(), b"hunter2+/hunter2"));
        assert!(looked.is_err(), "{form}");
    }
}
