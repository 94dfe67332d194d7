//! Remains of a credential in the vault's memory, read from outside.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod fleet;
mod upstream;
mod worker;

use std::fs::File;
use std::io::BufRead as _;
use std::os::unix::fs::FileExt as _;

use base64::Engine as _;
use casemate_trust::release::{Credential, Release, Slot};
use casemate_trust::secret::Reflection;
use casemate_wire::control::vault::Verdict;
use fleet::{Fleet, KEY};
use upstream::Upstream;
use worker::{call, channel};

/// Calls with each kind of slot.
const CALLS: usize = 20;
/// Bytes that are read at a time.
const BLOCK_BYTES: usize = 1 << 20;

/// Counts the occurrences of the texts in the writable memory of a process, without counting any
/// twice.
fn copies(process: u32, texts: &[&str]) -> std::io::Result<Vec<usize>> {
    let memory = File::open(format!("/proc/{process}/mem"))?;
    let maps = std::fs::read_to_string(format!("/proc/{process}/maps"))?;
    let overlap = texts.iter().map(|text| text.len()).max().unwrap_or(1) - 1;
    let mut counts = vec![0; texts.len()];
    let mut block = vec![0; BLOCK_BYTES + overlap];
    for line in maps.lines().filter(|line| line.contains(" rw")) {
        let range = line.split(' ').next().unwrap();
        let (from, to) = range.split_once('-').unwrap();
        let (from, to) = (u64::from_str_radix(from, 16), u64::from_str_radix(to, 16));
        let (mut from, to) = (from.unwrap(), to.unwrap());
        while from < to {
            let length = block.len().min((to - from) as usize);
            // A mapping may have been removed since the list was read.
            let Ok(read) = memory.read_at(&mut block[..length], from) else {
                break;
            };
            for (text, count) in texts.iter().zip(&mut counts) {
                *count += occurrences(&block[..read], text.as_bytes(), BLOCK_BYTES);
            }
            from += BLOCK_BYTES as u64;
        }
    }
    Ok(counts)
}

/// How often a text begins within the first bytes of a block.
fn occurrences(block: &[u8], text: &[u8], most: usize) -> usize {
    let (mut at, mut count) = (0, 0);
    // The library's search for a byte is fast even in a test without optimisation.
    while let Ok(skipped) = (&block[at..]).skip_until(text[0]) {
        let found = at + skipped;
        if skipped == 0 || found > most || block[found - 1] != text[0] {
            break;
        }
        count += usize::from(block[found - 1..].starts_with(text));
        at = found;
    }
    count
}

/// A slot of each kind.
fn with_every_slot(release: &mut Release) {
    let bearer = release.credentials[0].clone();
    let slot = |binding: &str, slot| Credential {
        binding: binding.parse().unwrap(),
        slot,
        ..bearer.clone()
    };
    let username = "user".to_owned();
    let name = "key".to_owned();
    release
        .credentials
        .push(slot("basic", Slot::Basic { username }));
    release
        .credentials
        .push(slot("query", Slot::Query { name }));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_copy_of_a_credential_outlives_its_connections() {
    let pair = base64::engine::general_purpose::STANDARD.encode(format!("user:{KEY}"));
    for alpn in ["http/1.1", "h2"] {
        let upstream = Upstream::start_with(KEY, &[alpn]).await;
        let mut fleet = Fleet::start(&upstream).await;
        fleet.edit_release = with_every_slot;
        // Its upstream returns what it receives, repeatedly.
        fleet.reflection = Reflection::Scrub;
        fleet.join().await;
        let release = fleet.deploy(1).await;
        let worker = channel(&mut fleet, release).await;
        let process = fleet.vault().process();
        // The plain value is in the bearer's field and in the query.
        let texts = [KEY, pair.as_str(), upstream.host.as_str()];
        if let Err(error) = copies(process, &texts) {
            println!("skipped: the memory of another process cannot be read here: {error}");
            return;
        }
        for binding in ["pay", "basic", "query"] {
            let calls = (0..CALLS).map(|number| {
                // Every other answer echoes the request.
                let path = ["/v1/x", "/v1/mirror?gzip", "/v1/mirror?plain", "/v1/leak"][number % 4];
                let (worker, url) = (&worker, upstream.url(path));
                async move {
                    call(worker, Some(binding), "POST", &url, "", &[])
                        .await
                        .status
                }
            });
            let statuses = futures_util::future::join_all(calls).await;
            assert!(statuses.iter().all(|status| matches!(status, 200 | 302)));
        }
        let open = copies(process, &texts).unwrap();
        assert!(open[2] > 0, "the search must find existing copies");
        // Without its secret the pool's connections close.
        let mut manifest = fleet.manifest(2);
        manifest.secrets.clear();
        assert_eq!(fleet.submit_manifest(&manifest).await, Verdict::Accepted);
        let mut closed = copies(process, &texts).unwrap();
        for _ in 0..200 {
            if closed[..2] == [0, 0] {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(25)).await;
            closed = copies(process, &texts).unwrap();
        }
        println!(
            "{} calls over {alpn}: {:?} copies of the value and of the Basic pair while connections idle, \
             {:?} after they closed",
            3 * CALLS,
            &open[..2],
            &closed[..2]
        );
        assert_eq!(closed[..2], [0, 0], "{alpn}");
    }
}
