//! The machine's configuration: the files of the seed, and those of earlier seeds, which the state
//! partition keeps.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use casemate_config::Mistake;
use casemate_durable::PRIVATE;
use ipnet::IpNet;
use ring::hmac;
use rustix::fs::{Gid, Uid};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::console::{Page, Problem};
use crate::files::read_json;
use crate::node_state::NodeState;
use crate::recovery::Key;
use crate::seed::{JOIN_TOKEN, NETWORK, NODE, SECRETS, STORAGE, Seed, UPDATE, VAULT};
use crate::update;

/// The file in which the files of seeds are kept, readable by root alone.
const KEPT: &str = "config.json";
/// Longest such file, bytes: as many files as a seed may have, in base64.
const MAX_KEPT_BYTES: u64 = 4 * 1024 * 1024;
/// The context of the proof.
const PROOF: &[u8] = b"casemate configuration of a machine 1";
/// The folder in which the programs find their files, each readable by the program that it is for.
const LIVE: &str = "/run/casemate";
/// Settings of node.toml and vault.toml that the image fixes.
const FIXED: [&str; 2] = ["admin_socket", "storage_key_file"];
/// The file in which the vault finds the key that init has opened.
const STORAGE_KEY: &str = "storage.key";

/// The first user id that launch gives to a program.
pub(crate) const UID_BASE: u32 = 700_000;
const SUPERVISOR: u32 = UID_BASE + 1;
const VAULT_USER: u32 = UID_BASE + 2;
const GATEWAY: u32 = UID_BASE + 3;

/// The configuration without a seed: callers come over plain HTTP.
const DEFAULT_NODE: &str = "[gateway]\nlisten = [\"0.0.0.0:80\"]\n";
const DEFAULT_VAULT: &str = "join_token_file = \"join-token\"\n";

/// How the machine gets its addresses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Method {
    /// DHCPv4, and IPv6 by router advertisements.
    #[default]
    Dhcp,
    /// Router advertisements alone.
    Slaac,
    /// The addresses in the file alone.
    Static,
}

/// The content of `network.toml`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Network {
    pub(crate) method: Method,
    /// The only interface to use; `None` means all interfaces.
    pub(crate) interface: Option<String>,
    pub(crate) addresses: Vec<IpNet>,
    pub(crate) gateways: Vec<IpAddr>,
    pub(crate) nameservers: Vec<IpAddr>,
    /// Names or addresses of SNTP servers; they take precedence over those from DHCP.
    pub(crate) time_servers: Vec<String>,
}

/// The content of `storage.toml`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Storage {
    /// The machine may keep a storage key only if the key is sealed to a TPM.
    require_tpm: bool,
}

impl Network {
    fn parse(text: &str) -> Result<Self, Vec<String>> {
        let network: Self = parse(NETWORK, text)?;
        let mut wrong = Vec::new();
        if network.method == Method::Static && network.addresses.is_empty() {
            wrong.push(format!(
                "{NETWORK}: the method `static` needs `addresses`, such as [\"192.0.2.7/24\"]"
            ));
        }
        if network.method == Method::Static && network.interface.is_none() {
            wrong.push(format!(
                "{NETWORK}: the method `static` needs `interface`, such as \"eth0\""
            ));
        }
        if network.method == Method::Slaac && network.nameservers.is_empty() {
            wrong.push(format!(
                "{NETWORK}: the method `slaac` needs `nameservers`, such as [\"2001:db8::53\"]"
            ));
        }
        if network
            .interface
            .as_ref()
            .is_some_and(|name| !is_interface(name))
        {
            wrong.push(format!(
                "{NETWORK}: `interface` is not a valid name, such as \"eth0\""
            ));
        }
        if wrong.is_empty() {
            Ok(network)
        } else {
            Err(wrong)
        }
    }
}

/// Parses a file; each mistake becomes a problem with file and line.
fn parse<T: DeserializeOwned>(name: &str, text: &str) -> Result<T, Vec<String>> {
    casemate_config::parse(text).map_err(|mistakes| {
        let line = |mistake: &Mistake| format!("{name}:{}: {}", mistake.line, mistake.message);
        mistakes.iter().map(line).collect()
    })
}

/// Whether a name is valid for an interface, and is not a path into another folder.
fn is_interface(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..16).contains(&name.len()) && name.bytes().all(is_plain) && !name.starts_with('.')
}

/// The machine's configuration, read once at the start of init.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) network: Network,
    /// The folder in which the programs find their configuration.
    pub(crate) live: PathBuf,
    /// The node's state folder.
    pub(crate) state: NodeState,
    /// Whether there is a join token.
    pub(crate) has_token: bool,
    /// Without a TPM that seals the storage key, nothing is served.
    pub(crate) require_tpm: bool,
    /// Settings of image updates.
    pub(crate) update: update::Settings,
    /// The files of this seed and of earlier ones.
    files: Files,
    /// The files of this seed alone.
    given: Files,
    before: Kept,
    kept: PathBuf,
    token: Option<Vec<u8>>,
}

/// Files of a seed by name.
type Files = BTreeMap<String, Vec<u8>>;

/// The stored files of earlier seeds. Only the proof shows that they were not changed on the disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    #[serde(with = "base64_files")]
    files: Files,
    /// A proof made with a key derived from the storage key; `None` where the vault keeps the
    /// storage key itself.
    proof: Option<String>,
}

impl Kept {
    fn read(path: &Path) -> io::Result<Self> {
        Ok(read_json(path, MAX_KEPT_BYTES)?.unwrap_or_default())
    }

    /// Whether these files were stored by a program that had opened this key.
    fn is_proven(&self, key: &Key) -> bool {
        let proof = self.proof.as_deref().map(hex::decode);
        let Some(Ok(proof)) = proof else { return false };
        hmac::verify(&proof_key(key), &to_prove(&self.files), &proof).is_ok()
    }
}

/// The input of the proof: each name and file with its length in front.
fn to_prove(files: &Files) -> Vec<u8> {
    let mut bytes = PROOF.to_vec();
    for part in files
        .iter()
        .flat_map(|(name, file)| [name.as_bytes(), file])
    {
        bytes.extend((part.len() as u64).to_be_bytes());
        bytes.extend(part);
    }
    bytes
}

fn proof_key(key: &Key) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, &**key)
}

mod base64_files {
    use std::collections::BTreeMap;

    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    use super::Files;

    pub(super) fn serialize<S: Serializer>(files: &Files, to: S) -> Result<S::Ok, S::Error> {
        let text = |(name, bytes): (&String, &Vec<u8>)| (name.clone(), STANDARD.encode(bytes));
        files
            .iter()
            .map(text)
            .collect::<BTreeMap<_, _>>()
            .serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Files, D::Error> {
        let texts = BTreeMap::<String, String>::deserialize(from)?;
        let bytes = |(name, text): (String, String)| {
            let bytes = STANDARD.decode(text).map_err(serde::de::Error::custom)?;
            Ok((name, bytes))
        };
        texts.into_iter().map(bytes).collect()
    }
}

impl Settings {
    /// Reads the seed, and the stored files of earlier seeds.
    pub(crate) fn take(seed: &Seed, state: &Path, page: &mut Page) -> Self {
        let kept = state.join(KEPT);
        let before = Kept::read(&kept).unwrap_or_else(|error| {
            page.problem(Problem::new(
                format!("the stored configuration cannot be read: {error}"),
                "give the configuration again, over the firmware",
            ));
            Kept::default()
        });
        let node_state = NodeState::on(state);
        let has_joined = node_state.has_identity();
        let mut given = Files::new();
        for (name, item) in &seed.items {
            let is_new = before.files.get(name) != Some(&item.bytes);
            if SECRETS.contains(&name.as_str()) || !is_new {
                continue;
            }
            // A person who plugs a disk into a serving node must not choose whom its vault trusts.
            if has_joined && item.is_of_a_disk && name != NETWORK {
                page.problem(Problem::new(
                    format!("{name} on {} is ignored: this machine has joined", item.way),
                    "give the file over the firmware, or set the machine up again with an empty state partition",
                ));
                continue;
            }
            if is_sound(name, &item.bytes, page) {
                given.insert(name.clone(), item.bytes.clone());
            }
        }
        let mut files = before.files.clone();
        files.extend(given.clone());
        let token = seed.items.get(JOIN_TOKEN).map(|item| item.bytes.clone());
        // An invalid storage.toml may have demanded a TPM.
        let is_unsound = seed.items.contains_key(STORAGE) && !files.contains_key(STORAGE);
        let storage = read_in::<Storage>(&files, STORAGE);
        let mut settings = Self {
            network: Network::default(),
            require_tpm: is_unsound || storage.is_none_or(|storage| storage.require_tpm),
            update: update::Settings::default(),
            live: LIVE.into(),
            state: node_state,
            has_token: token.is_some(),
            files,
            given,
            before,
            kept,
            token,
        };
        settings.read_own(page);
        settings
    }

    /// Reads the files that are for init itself.
    fn read_own(&mut self, page: &mut Page) {
        let text = self
            .files
            .get(NETWORK)
            .map(|bytes| String::from_utf8_lossy(bytes));
        let network = Network::parse(text.as_deref().unwrap_or_default());
        self.network = network.unwrap_or_else(|wrong| {
            wrong.into_iter().for_each(|what| {
                page.problem(Problem::new(
                    what,
                    "the stored file is invalid: give another; DHCP is used until then",
                ));
            });
            Network::default()
        });
        self.update = read_in(&self.files, UPDATE).unwrap_or_default();
    }

    /// Stores all files, and puts them where the programs look for them, with the storage key
    /// unless the vault keeps that itself. Stored files without a valid proof are not used.
    pub(crate) fn offer(
        &mut self,
        key: Option<&Key>,
        is_new_key: bool,
        page: &mut Page,
    ) -> Result<(), Problem> {
        // Until this machine has joined, a foreign setting can do no harm.
        if let Some(key) = key
            && self.state.has_identity()
            && !is_new_key
            && !self.before.is_proven(key)
        {
            let problem = Problem::new(
                "the configuration on the state partition was changed by another program: none of it is used",
                "find out who had access to the disk, and give the whole configuration again, over the firmware",
            );
            if self.given.is_empty() {
                return Err(problem);
            }
            page.problem(problem);
            self.files.clone_from(&self.given);
            self.read_own(page);
        }
        let proof = key.map(|key| {
            let tag = hmac::sign(&proof_key(key), &to_prove(&self.files));
            hex::encode(tag)
        });
        let kept = Kept {
            files: self.files.clone(),
            proof,
        };
        if kept != self.before {
            let text = serde_json::to_vec(&kept).map_err(io::Error::from);
            let written =
                text.and_then(|text| casemate_durable::replace(&self.kept, PRIVATE, &text));
            written.map_err(|error| {
                Problem::new(
                    format!("the configuration cannot be stored on the state partition: {error}"),
                    "the partition may be full or damaged: make it larger, or replace the disk",
                )
            })?;
        }
        let offered = offer(&self.files, &self.live, self.token.as_deref(), key);
        offered.map_err(|error| {
            Problem::new(
                format!("the configuration cannot be written for the programs: {error}"),
                "restart; if the failure repeats, report it",
            )
        })?;
        let vault = fs::read_to_string(self.live.join(VAULT)).unwrap_or_default();
        if self.has_token && !vault.contains("join_token_file") {
            page.problem(Problem::new(
                format!("{VAULT} of the seed does not name the join token"),
                format!("add the line join_token_file = \"{JOIN_TOKEN}\" to it"),
            ));
        }
        Ok(())
    }
}

/// Parses a stored file, which had parsed when it was stored; the default when it does not parse.
fn read_in<T: DeserializeOwned + Default>(files: &Files, name: &str) -> Option<T> {
    let text = files
        .get(name)
        .map_or("", |bytes| std::str::from_utf8(bytes).unwrap_or("no text"));
    parse(name, text).ok()
}

/// Whether a machine with this state partition has neither joined nor stored a file of a seed.
pub(crate) fn is_new(state: &Path) -> bool {
    !NodeState::on(state).has_identity() && !state.join(KEPT).exists()
}

/// Whether a file of the seed may replace the stored one. The node's programs read their own files
/// and report their mistakes themselves.
fn is_sound(name: &str, bytes: &[u8], page: &mut Page) -> bool {
    let wrong = match (name, std::str::from_utf8(bytes)) {
        (_, Err(error)) => vec![format!("{name}: {error}")],
        (NETWORK, Ok(text)) => Network::parse(text).err().unwrap_or_default(),
        (STORAGE, Ok(text)) => parse::<Storage>(STORAGE, text).err().unwrap_or_default(),
        (UPDATE, Ok(text)) => parse::<update::Settings>(UPDATE, text)
            .err()
            .unwrap_or_default(),
        (NODE | VAULT, Ok(text)) => match parse::<toml::Table>(name, text) {
            Ok(table) => FIXED
                .iter()
                .filter(|fixed| table.contains_key(**fixed))
                .map(|fixed| {
                    format!("{name}: `{fixed}` is set by the image and cannot be configured")
                })
                .collect(),
            Err(mistakes) => mistakes,
        },
        _ => Vec::new(),
    };
    for what in &wrong {
        page.problem(Problem::new(
            what.clone(),
            format!("correct {name} in the seed and restart; until then the earlier file is used"),
        ));
    }
    wrong.is_empty()
}

/// Writes copies for the programs, in memory: each program can read its own files, and write none.
fn offer(files: &Files, live: &Path, token: Option<&[u8]>, key: Option<&Key>) -> io::Result<()> {
    make_folder(live, 0o755)?;
    for (name, text) in [(NODE, DEFAULT_NODE), (VAULT, DEFAULT_VAULT)] {
        let kept = files.get(name).cloned();
        let mut bytes = kept.unwrap_or_else(|| text.as_bytes().to_vec());
        if let (VAULT, Some(key)) = (name, key) {
            hand_over(&live.join(STORAGE_KEY), &key[..], Some(VAULT_USER))?;
            // The setting goes before the first table.
            let setting = format!("storage_key_file = \"{STORAGE_KEY}\"\n");
            bytes.splice(..0, setting.into_bytes());
        }
        hand_over(&live.join(name), &bytes, owner(name, &bytes))?;
    }
    for (name, bytes) in files.iter().filter(|(name, _)| name.ends_with(".pem")) {
        hand_over(&live.join(name), bytes, owner(name, bytes))?;
    }
    if let Some(token) = token {
        hand_over(&live.join(JOIN_TOKEN), token, Some(VAULT_USER))?;
    }
    Ok(())
}

/// The user who may read a file; `None` when everybody may, because it holds no secret.
fn owner(name: &str, bytes: &[u8]) -> Option<u32> {
    let marker = b"PRIVATE KEY-----";
    let is_key = bytes.windows(marker.len()).any(|window| window == marker);
    match name {
        NODE => Some(SUPERVISOR),
        VAULT => Some(VAULT_USER),
        _ if is_key => Some(GATEWAY),
        _ => None,
    }
}

fn hand_over(path: &Path, bytes: &[u8], owner: Option<u32>) -> io::Result<()> {
    let mode = if owner.is_some() { 0o400 } else { 0o444 };
    casemate_durable::replace(path, mode, bytes)?;
    if let Some(owner) = owner {
        rustix::fs::chown(path, Some(Uid::from_raw(owner)), Some(Gid::from_raw(owner)))?;
    }
    Ok(())
}

fn make_folder(path: &Path, mode: u32) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recovery::random_key;

    #[test]
    fn stored_files_need_a_proof_made_with_the_opened_key() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(KEPT);
        assert_eq!(Kept::read(&path).unwrap(), Kept::default());
        let (key, other) = (random_key().unwrap(), random_key().unwrap());
        let files = Files::from([(VAULT.to_owned(), b"a".to_vec()), ("b.pem".into(), vec![])]);
        let tag = hmac::sign(&proof_key(&key), &to_prove(&files));
        let proof = Some(hex::encode(tag));
        let kept = Kept { files, proof };
        fs::write(&path, serde_json::to_vec(&kept).unwrap()).unwrap();
        let read = Kept::read(&path).unwrap();
        assert!(read == kept && read.is_proven(&key) && !read.is_proven(&other));
        let mut changed = kept.clone();
        changed.files.insert("c.pem".into(), b"anchor".to_vec());
        assert!(!changed.is_proven(&key));
        // Bytes that move from a name to its file give another proof.
        let moved = Files::from([("vault.tomla".to_owned(), vec![]), ("b.pem".into(), vec![])]);
        assert_ne!(to_prove(&moved), to_prove(&kept.files));
        let none = Kept {
            proof: None,
            ..kept
        };
        assert!(!none.is_proven(&key));
    }

    #[test]
    fn network_files_are_read_or_every_mistake_is_named() {
        assert_eq!(Network::parse("").unwrap(), Network::default());
        let text = "method = \"static\"\ninterface = \"eth0\"\naddresses = [\"192.0.2.7/24\", \"2001:db8::7/64\"]\n\
                    gateways = [\"192.0.2.1\"]\nnameservers = [\"192.0.2.1\"]\ntime_servers = [\"time.example\"]\n";
        let network = Network::parse(text).unwrap();
        assert_eq!(network.addresses.len(), 2);
        let wrong = Network::parse("method = \"static\"\ninterface = \"../x\"\n").unwrap_err();
        assert_eq!(wrong.len(), 2, "{wrong:?}");
        let wrong = Network::parse("metod = 1\naddresses = [\"x\"]\n").unwrap_err();
        assert!(
            wrong.len() == 2 && wrong[0].starts_with("network.toml:1:"),
            "{wrong:?}"
        );
    }

    #[test]
    fn the_content_of_a_file_determines_its_owner() {
        assert_eq!(
            owner("key.pem", b"-----BEGIN PRIVATE KEY-----\n"),
            Some(GATEWAY)
        );
        assert_eq!(owner("ca.pem", b"-----BEGIN CERTIFICATE-----\n"), None);
        assert_eq!(owner(VAULT, b""), Some(VAULT_USER));
        for name in ["", "..", ".x", "a/b", "sixteen-letters-"] {
            assert!(!is_interface(name), "{name}");
        }
    }
}
