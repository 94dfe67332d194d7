//! The storage key: whether it opens, and what the operator can do when it does not.
//!
//! | state | where the key is | how it opens |
//! |---|---|---|
//! | `tpm` | in `keys/storage.json`, sealed to the TPM | an image that its key has approved, Secure Boot as it was, no newer image seen |
//! | `recovery` | the same | the operator's recovery key, for this boot; sealed anew when the TPM allows |
//! | `clear` | the vault's own file | everybody who has the disk has the key; the page shows `clear`, and `require_tpm` forbids this state |
//!
//! A key that was sealed once is never replaced by a new one: without it, nothing on the partition
//! opens.

mod boot;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use casemate_measured_boot::{PcrValue, sealed_policy};
use ring::hmac;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

pub(crate) use boot::Boot;

use crate::console::{Page, Problem};
use crate::files::read_json;
use crate::node_state::NodeState;
use crate::recovery::{KEY_BYTES, Key, RecoveryKey, random_key};
use crate::tpm::{Fault, Sealed, Tpm};

/// The folder on the state partition, readable by root alone.
const FOLDER: &str = "keys";
const SEALED: &str = "storage.json";
/// Longest file with a sealed key, bytes.
const MAX_SEALED_BYTES: u64 = 64 * 1024;
/// Input from which the TPM's owner authorization is derived.
const OWNER: &[u8] = b"casemate TPM owner 1";

/// How the key was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Tpm,
    Recovery,
    Clear,
}

/// The content of `keys/storage.json`. A newer image may add fields; the image before it must open
/// the file all the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    sealed: Sealed,
    /// The image key whose approvals open the sealed key, PEM.
    image_key: String,
    /// The PCR values at sealing, to report later which has changed.
    pcrs: BTreeMap<u8, PcrValue>,
    /// The storage key, sealed by the recovery key.
    #[serde(with = "hex::serde")]
    recovery: Vec<u8>,
}

/// The operator's and this boot's conditions for opening a key.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Terms<'a> {
    /// The recovery key, if the seed has one.
    pub(crate) recovery: Option<&'a [u8]>,
    /// A key in clear is forbidden.
    pub(crate) require_tpm: bool,
    /// The seed has a join token: a machine without a key is to be a new node.
    pub(crate) has_token: bool,
    /// This image is on trial: what is sealed now would not open for the image before it.
    pub(crate) is_trial: bool,
}

/// The result of opening the key.
struct Opened {
    mode: Mode,
    key: Option<Key>,
    recovery: Option<RecoveryKey>,
}

/// The storage key after opening: open here, or kept by the vault itself.
pub(crate) struct Storage {
    pub(crate) mode: Mode,
    /// The key; `None` when the vault keeps it itself.
    pub(crate) key: Option<Key>,
    /// The recovery key was used, and the key is now sealed again.
    pub(crate) was_recovered: bool,
    /// The key was sealed for the first time.
    pub(crate) is_new: bool,
    /// The recovery key, to be shown until the operator has had time to write it down.
    pub(crate) recovery: Option<Zeroizing<String>>,
    boot: Boot,
}

/// The TPM's owner authorization, derived from the storage key: only a program that has opened the
/// key knows it.
fn owner(key: &Key) -> Zeroizing<Vec<u8>> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, &**key);
    let mut value = hmac::sign(&key, OWNER).as_ref().to_vec();
    // A TPM drops zeros at the end.
    if let Some(last) = value.last_mut() {
        *last |= 1;
    }
    Zeroizing::new(value)
}

fn broken(fault: &Fault) -> Problem {
    Problem::new(
        fault.to_string(),
        "restart; if the failure repeats, check the TPM in the firmware's settings",
    )
}

impl Storage {
    /// Opens the key of a state partition, or makes one.
    pub(crate) fn open(
        state: &Path,
        mut boot: Boot,
        terms: Terms<'_>,
        page: &mut Page,
    ) -> Result<Self, Problem> {
        let folder = state.join(FOLDER);
        let kept = read_kept(&folder)?;
        let clear = NodeState::on(state).clear_storage_key();
        let opened = match &kept {
            None => Self::first(state, &folder, &mut boot, terms, page)?,
            Some(kept) => Self::again(kept, &folder, &mut boot, terms, page)?,
        };
        // A recovery key that was used is not returned.
        let was_sealed_anew =
            kept.is_some() && opened.mode == Mode::Tpm && opened.recovery.is_none();
        if let Some(key) = &opened.key
            && fs::read(&clear).is_ok_and(|file| file == key[..])
        {
            remove(&clear).map_err(|error| full(&error))?;
        }
        let mut recovery = None;
        if let Some(tpm) = &mut boot.tpm {
            let was_shown = tpm.recovery_was_shown().map_err(|fault| broken(&fault))?;
            recovery = opened.recovery.filter(|_| !was_shown);
            // Nothing that runs later in this boot can open the key again.
            tpm.end_opening().map_err(|fault| broken(&fault))?;
        }
        page.opened();
        if opened.mode == Mode::Tpm && !boot.secure_boot {
            page.problem(Problem::new(
                "Secure Boot is off: anybody at this machine can start other software, which can open the storage key",
                "turn it on in the firmware's settings, with the key that the image is signed by; then give the recovery key once",
            ));
        }
        Ok(Self {
            mode: opened.mode,
            key: opened.key,
            was_recovered: was_sealed_anew,
            is_new: kept.is_none(),
            recovery: recovery.as_ref().map(RecoveryKey::to_text),
            boot,
        })
    }

    /// A key that the vault keeps itself.
    #[cfg(test)]
    pub(crate) fn in_clear() -> Self {
        Self {
            mode: Mode::Clear,
            key: None,
            was_recovered: false,
            is_new: false,
            recovery: None,
            boot: Boot {
                tpm: None,
                approvals: None,
                secure_boot: false,
            },
        }
    }

    /// No key is sealed yet: seals one, or leaves the key to the vault.
    fn first(
        state: &Path,
        folder: &Path,
        boot: &mut Boot,
        terms: Terms<'_>,
        page: &mut Page,
    ) -> Result<Opened, Problem> {
        if let Err(why) = boot.sealer() {
            if terms.require_tpm {
                return Err(Problem::new(
                    format!("the storage key cannot be sealed, and `require_tpm` is set: {why}"),
                    "give the machine a TPM 2.0 and a signed image, or take `require_tpm` out of storage.toml",
                ));
            }
            page.line("key", format!("on the state partition, in clear: {why}"));
            return Ok(Opened {
                mode: Mode::Clear,
                key: None,
                recovery: None,
            });
        }
        let node = NodeState::on(state);
        let has_sealed = node.has_identity();
        let key = match fs::read(node.clear_storage_key()) {
            // Without an identity no record depends on the vault's file yet, and somebody may have
            // put the file there and know the key.
            Ok(bytes) if has_sealed => <[u8; KEY_BYTES]>::try_from(&Zeroizing::new(bytes)[..])
                .map(Zeroizing::new)
                .map_err(|_| lost("the vault's file is not a storage key")),
            Err(error) if has_sealed => Err(lost(&error.to_string())),
            _ => random_key().map_err(random),
        };
        let key = key?;
        let recovery = RecoveryKey(random_key().map_err(random)?);
        let sealed = recovery.seal(&key).map_err(random)?;
        let parts = Sealing {
            key: &key,
            recovery: &recovery,
            sealed_recovery: sealed,
            was_shown: false,
        };
        seal(boot, folder, parts, terms, page)?;
        let was_clear = if has_sealed {
            "sealed to the TPM; it was on the state partition in clear before"
        } else {
            "sealed to the TPM"
        };
        page.line("key", was_clear);
        Ok(Opened {
            mode: Mode::Tpm,
            key: Some(key),
            recovery: Some(recovery),
        })
    }

    /// Opens the sealed key.
    fn again(
        kept: &Kept,
        folder: &Path,
        boot: &mut Boot,
        terms: Terms<'_>,
        page: &mut Page,
    ) -> Result<Opened, Problem> {
        let why = match boot.open(kept) {
            Ok(payload) => {
                page.line("key", "sealed to the TPM");
                let (key, recovery) = payload.split_first_chunk().ok_or_else(|| {
                    Problem::new(
                        "the TPM's sealed object is not a storage key",
                        "give the recovery key",
                    )
                })?;
                let key = Zeroizing::new(*key);
                let recovery = <[u8; KEY_BYTES]>::try_from(recovery).ok();
                let recovery = recovery.map(|key| RecoveryKey(Zeroizing::new(key)));
                finish_owner(boot, &key, page);
                return Ok(Opened {
                    mode: Mode::Tpm,
                    key: Some(key),
                    recovery,
                });
            }
            Err(why) => why,
        };
        let Some(text) = terms.recovery else {
            return Err(Problem::new(
                format!("the storage key stays sealed: {why}"),
                "undo the change; or, if it is yours, give the recovery key as `recovery-key` over fw_cfg, SMBIOS or a seed disk",
            ));
        };
        let opened = RecoveryKey::parse(text)
            .and_then(|recovery| recovery.open(&kept.recovery).map(|key| (key, recovery)));
        let (key, recovery) = opened.map_err(|wrong| {
            Problem::new(
                format!("the storage key stays sealed ({why}), and the recovery key does not open it: {wrong}"),
                "compare it with the key that this machine showed at its first boot",
            )
        })?;
        let older = boot.is_older().unwrap_or_else(Some);
        let may_seal = older.is_none() && !terms.is_trial;
        let mode = if may_seal && boot.sealer().is_ok() {
            // A person who gives the recovery key owns this machine, and has seen the key.
            let parts = Sealing {
                key: &key,
                recovery: &recovery,
                sealed_recovery: kept.recovery.clone(),
                was_shown: true,
            };
            let terms = Terms {
                has_token: true,
                ..terms
            };
            seal(boot, folder, parts, terms, page)?;
            page.line(
                "key",
                "opened by the recovery key, and sealed to the TPM anew",
            );
            Mode::Tpm
        } else {
            page.line(
                "key",
                format!("opened by the recovery key, for this boot alone: {why}"),
            );
            Mode::Recovery
        };
        Ok(Opened {
            mode,
            key: Some(key),
            recovery: None,
        })
    }

    /// How the key is protected, in one word for operators of many machines.
    pub(crate) fn sealed_with(&self) -> &'static str {
        match self.mode {
            Mode::Tpm if self.boot.secure_boot => "tpm",
            Mode::Tpm => "tpm without secure boot",
            Mode::Recovery => "recovery",
            Mode::Clear => "clear",
        }
    }

    /// Records that the operator has seen the recovery key: it is not shown again.
    pub(crate) fn recovery_was_shown(&mut self) -> Result<(), Fault> {
        self.recovery = None;
        match (&self.key, &mut self.boot.tpm) {
            (Some(key), Some(tpm)) => tpm.set_recovery_shown(&owner(key)),
            _ => Ok(()),
        }
    }

    /// Records that this image is good: no older image opens the key any more.
    pub(crate) fn raise_floor(&mut self) -> Result<(), Fault> {
        let (Mode::Tpm, Some(key)) = (self.mode, &self.key) else {
            return Ok(());
        };
        match (self.boot.version(), &mut self.boot.tpm) {
            (Some(version), Some(tpm)) => tpm.raise_floor(&owner(key), version.as_u64()),
            _ => Ok(()),
        }
    }
}

/// Inputs of [`seal`].
struct Sealing<'a> {
    key: &'a Key,
    recovery: &'a RecoveryKey,
    /// The key, sealed by the recovery key.
    sealed_recovery: Vec<u8>,
    /// The operator already has the recovery key.
    was_shown: bool,
}

/// Seals a key to the TPM's present state, and writes the result to the state partition. A kill at
/// any point leaves a key that opens, if need be with the recovery key.
fn seal(
    boot: &mut Boot,
    folder: &Path,
    parts: Sealing<'_>,
    terms: Terms<'_>,
    page: &mut Page,
) -> Result<(), Problem> {
    let key = parts.key;
    let (tpm, image_key, signed, platform) = boot
        .sealer()
        .map_err(|why| Problem::new(why, "restart; if the failure repeats, report it"))?;
    let image_key = image_key.clone();
    let version = signed.approval.version.as_u64();
    let sealed = (|| {
        let floor = make_free(tpm, &owner(key), terms.has_token)?;
        tpm.make_indexes(&[], floor.max(version), parts.was_shown)?;
        let payload = Zeroizing::new([&key[..], &parts.recovery.0[..]].concat());
        let policy = sealed_policy(&image_key, platform);
        Ok((tpm.seal(&[], &payload, &policy)?, tpm.pcrs()?))
    })();
    let (sealed, pcrs) = sealed.map_err(|fault: Fault| cannot_seal(&fault))?;
    let kept = Kept {
        sealed,
        image_key: image_key.to_pem().to_owned(),
        pcrs,
        recovery: parts.sealed_recovery,
    };
    let text = serde_json::to_vec(&kept).map_err(|error| full(&error.into()))?;
    let write = || {
        fs::create_dir_all(folder)?;
        casemate_durable::replace(&folder.join(SEALED), 0o400, &text)
    };
    write().map_err(|error| full(&error))?;
    finish_owner(boot, key, page);
    Ok(())
}

/// Makes the storage key the TPM's owner authorization: from then on only a program that has opened
/// the key may change the floor.
fn finish_owner(boot: &mut Boot, key: &Key, page: &mut Page) {
    let Some(tpm) = &mut boot.tpm else { return };
    let ours = owner(key);
    let finished = tpm.is_owned().and_then(|is_owned| {
        let from: &[u8] = if is_owned { &ours } else { &[] };
        tpm.set_owner(from, &ours)
    });
    if let Err(fault) = finished {
        page.problem(Problem::new(
            format!("the version floor is not ours: {fault}"),
            "this machine's TPM has another owner: clear it in the firmware, and give the recovery key",
        ));
    }
}

/// Clears the TPM, so that no object sealed before, to another state of this machine, opens later;
/// returns the floor that it had. A TPM of ours whose key was lost with its disk is cleared only
/// when this machine is to be a new node; a TPM with another owner is left alone.
fn make_free(tpm: &mut Tpm, ours: &[u8], is_wanted: bool) -> Result<u64, Fault> {
    if !tpm.is_owned()? {
        return Ok(0);
    }
    let floor = tpm.floor()?.unwrap_or_default();
    match tpm.set_owner(ours, ours) {
        Ok(()) => {
            tpm.clear()?;
            Ok(floor)
        }
        Err(fault) if fault.is_authorization() && tpm.has_floor_index()? && is_wanted => {
            tpm.clear()?;
            Ok(0)
        }
        Err(fault) => Err(fault),
    }
}

fn cannot_seal(fault: &Fault) -> Problem {
    let next = if fault.is_authorization() {
        "the TPM is another disk's or owner's: attach the right disk; for a new node give a join token, or clear the TPM in the firmware"
    } else {
        "restart; if the failure repeats, check the TPM in the firmware's settings"
    };
    Problem::new(format!("the storage key cannot be sealed: {fault}"), next)
}

/// The storage key that sealed the records is gone, and a new key would not open them.
fn lost(why: &str) -> Problem {
    Problem::new(
        format!("the storage key of this state partition is gone: {why}"),
        "put back a copy of the partition, or join again with an empty one and a new token",
    )
}

fn random(wrong: &'static str) -> Problem {
    Problem::new(
        format!("the storage key cannot be made: {wrong}"),
        "restart; if the failure repeats, report it",
    )
}

fn full(error: &io::Error) -> Problem {
    Problem::new(
        format!("the sealed storage key cannot be kept on the state partition: {error}"),
        "the partition may be full or damaged: make it larger, or replace the disk",
    )
}

fn read_kept(folder: &Path) -> Result<Option<Kept>, Problem> {
    let path = folder.join(SEALED);
    read_json(&path, MAX_SEALED_BYTES).map_err(|error| {
        Problem::new(
            format!("the sealed storage key {} cannot be read: {error}", path.display()),
            "the disk is damaged: put back a copy of the state partition, or join again with an empty one",
        )
    })
}

/// Removes a file and syncs its folder.
fn remove(path: &Path) -> io::Result<()> {
    fs::remove_file(path)?;
    casemate_durable::sync_folder(path.parent().unwrap_or(Path::new("/")))
}

#[cfg(test)]
mod tests;
