//! The seed: a few named files that the operator gives a machine at its first boot, in one of these
//! ways:
//!
//! | way | name there | of file `join-token` |
//! |---|---|---|
//! | QEMU's fw_cfg | `opt/casemate/NAME` | `-fw_cfg name=opt/casemate/join-token,file=...` |
//! | SMBIOS type 11 | `io.systemd.credential[.binary]:casemate.NAME=` | as systemd's credentials |
//! | a disk or partition | file of that name in its root | FAT labelled `CASEMATE`, or the ISO or GPT name `CASEMATE_SEED` |
//!
//! A file that comes in more than one way is taken from the first way in this order.

mod firmware;
mod volume;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::console::{Page, Problem};

/// Largest file of a seed, bytes.
pub(crate) const MAX_FILE_BYTES: usize = 64 * 1024;
/// Time for disks to appear.
const APPEARS_WITHIN: Duration = Duration::from_secs(5);
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// Most files of a seed.
const MAX_FILES: usize = 32;

/// Files that a seed may contain beside certificates and keys (`*.pem`).
pub(crate) const JOIN_TOKEN: &str = "join-token";
pub(crate) const NETWORK: &str = "network.toml";
pub(crate) const NODE: &str = "node.toml";
pub(crate) const VAULT: &str = "vault.toml";
pub(crate) const STORAGE: &str = "storage.toml";
pub(crate) const UPDATE: &str = "update.toml";
pub(crate) const RECOVERY_KEY: &str = "recovery-key";
/// Files that are wiped from the seed's disk after use, and never stored.
pub(crate) const SECRETS: [&str; 2] = [JOIN_TOKEN, RECOVERY_KEY];
const KNOWN: [&str; 7] = [
    JOIN_TOKEN,
    NETWORK,
    NODE,
    VAULT,
    STORAGE,
    UPDATE,
    RECOVERY_KEY,
];

/// The way of files that the firmware passes on.
const FIRMWARE: &str = "firmware";

/// One file of a seed.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) bytes: Vec<u8>,
    /// The way in which the file came.
    pub(crate) way: String,
    /// The file comes from a disk, which anybody near the machine can plug in.
    pub(crate) is_of_a_disk: bool,
}

/// The files of a seed, and the disks that they came from.
#[derive(Default)]
pub(crate) struct Seed {
    pub(crate) items: BTreeMap<String, Item>,
    /// Disks with secrets, and the names of these.
    volumes: Vec<(volume::Volume, Vec<String>)>,
}

impl Seed {
    /// Finds all files. A new machine waits a while for a disk whose driver is slow.
    pub(crate) fn find(page: &mut Page, is_new: bool) -> Self {
        let until = Instant::now() + APPEARS_WITHIN;
        loop {
            let seed = Self::read(page);
            if !is_new || !seed.items.is_empty() || Instant::now() > until {
                return seed;
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
    }

    /// Reads the files that are there now. A file that cannot be read becomes a problem on the
    /// page.
    pub(crate) fn read(page: &mut Page) -> Self {
        let mut seed = Self::default();
        let firmware = firmware::fw_cfg().into_iter().chain(firmware::smbios(page));
        for (name, bytes) in firmware {
            seed.add(page, &name, bytes, FIRMWARE);
        }
        for volume in volume::find(page) {
            let way = volume.device.display().to_string();
            let files = volume.files(page);
            let mut secrets: Vec<_> = files.iter().map(|(name, _)| name.clone()).collect();
            secrets.retain(|name| SECRETS.contains(&name.as_str()));
            for (name, bytes) in files {
                seed.add(page, &name, bytes, &way);
            }
            if !secrets.is_empty() {
                seed.volumes.push((volume, secrets));
            }
        }
        if !seed.items.is_empty() {
            let named = seed
                .items
                .iter()
                .map(|(name, item)| format!("{name} ({})", item.way));
            page.line("seed", named.collect::<Vec<_>>().join(", "));
        }
        seed
    }

    fn add(&mut self, page: &mut Page, name: &str, bytes: Vec<u8>, way: &str) {
        let problem = if !is_known(name) {
            format!("{name:?} is not a file of a seed")
        } else if bytes.len() > MAX_FILE_BYTES {
            format!(
                "{name} has {} bytes, expected at most {MAX_FILE_BYTES}",
                bytes.len()
            )
        } else if self.items.len() == MAX_FILES && !self.items.contains_key(name) {
            format!("{name} is one file too many, expected at most {MAX_FILES}")
        } else {
            let item = Item {
                bytes,
                way: way.to_owned(),
                is_of_a_disk: way != FIRMWARE,
            };
            self.items.entry(name.to_owned()).or_insert(item);
            return;
        };
        page.problem(Problem::new(
            format!("the seed ({way}): {problem}"),
            format!("give {} or a name that ends in .pem", KNOWN.join(", ")),
        ));
    }

    /// Wipes a secret that was used from the seed's disks. Returns a problem for each disk on which
    /// the secret stays.
    pub(crate) fn forget(&mut self, name: &str) -> Vec<Problem> {
        self.items.remove(name);
        let is_on = |secrets: &[String]| secrets.iter().any(|secret| secret == name);
        let with = self.volumes.iter().filter(|(_, secrets)| is_on(secrets));
        let kept = with.filter_map(|(volume, _)| {
            let error = volume.wipe(name).err()?;
            Some(Problem::new(
                format!("{name} stays on {}: {error}", volume.device.display()),
                "detach the seed, and remove the file from it",
            ))
        });
        kept.collect()
    }
}

/// Whether a seed may contain this name; the names lead to no other folder.
fn is_known(name: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    let pem = name.strip_suffix(".pem");
    let is_pem =
        pem.is_some_and(|stem| !stem.is_empty() && stem.len() <= 64 && stem.bytes().all(is_word));
    KNOWN.contains(&name) || is_pem
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Image;

    pub(super) fn page() -> Page {
        Page::new(&Image {
            version: "1.2.3".parse().unwrap(),
            profile: "test".into(),
            time: 0,
        })
    }

    #[test]
    fn names_lead_nowhere_else() {
        for name in [
            JOIN_TOKEN,
            NETWORK,
            NODE,
            VAULT,
            "upstream-ca.pem",
            "a_1.pem",
        ] {
            assert!(is_known(name), "{name}");
        }
        for name in [
            "",
            ".pem",
            "../a.pem",
            "a/b.pem",
            "a.b.pem",
            "passwd",
            "join-token2",
            "a\n.pem",
        ] {
            assert!(!is_known(name), "{name}");
        }
    }

    #[test]
    fn the_first_way_counts_and_bounds_hold() {
        let (mut seed, mut page) = (Seed::default(), page());
        seed.add(&mut page, JOIN_TOKEN, b"one".to_vec(), FIRMWARE);
        seed.add(&mut page, JOIN_TOKEN, b"two".to_vec(), "/dev/vdb");
        seed.add(&mut page, NODE, vec![b' '; MAX_FILE_BYTES + 1], FIRMWARE);
        seed.add(&mut page, "shadow", vec![], "firmware");
        assert_eq!(seed.items.len(), 1);
        assert_eq!(seed.items[JOIN_TOKEN].bytes, b"one");
        for number in 0..2 * MAX_FILES {
            seed.add(&mut page, &format!("{number}.pem"), vec![], "firmware");
        }
        assert_eq!(seed.items.len(), MAX_FILES);
    }
}
