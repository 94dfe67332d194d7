use casemate_measured_boot::{ApprovalKey, Approvals};
use casemate_trust::image::ImageVersion;
use tempfile::TempDir;

use super::*;
use crate::image::Image;
use crate::tpm::tests::{Emulator, approval, image_key};

const IMAGE: &[u8] = b"image";

/// A machine that boots repeatedly: its TPM, its disk, and what its firmware measures.
struct Bench {
    tpm: TempDir,
    state: TempDir,
    key: ApprovalKey,
}

/// One boot of the machine.
struct Boots<'a> {
    image: &'a [u8],
    version: u64,
    from_outside: &'a [u8],
    firmware: &'a [u8],
    recovery: Option<&'a str>,
    has_tpm: bool,
    has_token: bool,
    is_trial: bool,
}

const USUAL: Boots<'static> = Boots {
    image: IMAGE,
    version: 5,
    from_outside: b"",
    firmware: b"secure boot",
    recovery: None,
    has_tpm: true,
    has_token: false,
    is_trial: false,
};

fn page() -> Page {
    Page::new(&Image {
        version: "1.2.3".parse().unwrap(),
        profile: "test".into(),
        time: 0,
    })
}

impl Bench {
    fn new() -> Self {
        let tpm = tempfile::tempdir().unwrap();
        let key = image_key(tpm.path());
        let state = tempfile::tempdir().unwrap();
        Self { tpm, state, key }
    }

    fn boot(&self, how: &Boots<'_>) -> Result<Storage, String> {
        self.boot_with(how, false).map_err(|problem| problem.what)
    }

    fn boot_with(&self, how: &Boots<'_>, require_tpm: bool) -> Result<Storage, Problem> {
        self.boot_on(&mut Emulator::start(self.tpm.path()), how, require_tpm)
    }

    fn boot_on(
        &self,
        emulator: &mut Emulator,
        how: &Boots<'_>,
        require_tpm: bool,
    ) -> Result<Storage, Problem> {
        emulator.boot(how.image, how.from_outside, how.firmware);
        let tpm = how.has_tpm.then(|| emulator.take());
        let approvals = Approvals(vec![approval(&self.key, IMAGE, how.version)]);
        let version = ImageVersion::from_u64(how.version).unwrap();
        let boot = Boot::of(version, tpm, Some((self.key.public().clone(), approvals)));
        let terms = Terms {
            recovery: how.recovery.map(str::as_bytes),
            require_tpm,
            has_token: how.has_token,
            is_trial: how.is_trial,
        };
        Storage::open(self.state.path(), boot, terms, &mut page())
    }
}

#[test]
fn a_key_is_sealed_at_the_first_boot_and_opens_at_the_next() {
    let bench = Bench::new();
    let first = bench.boot(&USUAL).unwrap();
    assert_eq!(first.mode, Mode::Tpm);
    let recovery = first.recovery.unwrap();
    let mut emulator = Emulator::start(bench.tpm.path());
    let second = bench.boot_on(&mut emulator, &USUAL, false);
    let mut second = second.map_err(|problem| problem.what).unwrap();
    assert!(second.key == first.key && !second.was_recovered);
    // The recovery key is shown until the operator has seen it.
    assert_eq!(*second.recovery.clone().unwrap(), *recovery);
    second.recovery_was_shown().unwrap();
    drop(emulator);
    assert!(bench.boot(&USUAL).unwrap().recovery.is_none());
    // The console does not show the recovery key to an attacker who has changed the disk either.
    let before = bench.tpm.path().join("storage.json");
    let folder = bench.state.path().join(FOLDER);
    fs::copy(folder.join(SEALED), &before).unwrap();
    fs::remove_dir_all(&folder).unwrap();
    fs::create_dir_all(&folder).unwrap();
    fs::copy(&before, folder.join(SEALED)).unwrap();
    assert!(bench.boot(&USUAL).unwrap().recovery.is_none());
    // The disk holds neither the key in clear nor anything that opens it.
    let text = fs::read(bench.state.path().join(FOLDER).join(SEALED)).unwrap();
    let key = first.key.unwrap();
    assert!(!text.windows(KEY_BYTES).any(|part| part == &key[..]));
    assert!(
        !String::from_utf8(text)
            .unwrap()
            .contains(&hex::encode(*key))
    );
}

#[test]
#[expect(clippy::too_many_lines, reason = "one story, step by step")]
fn what_has_changed_is_named_and_the_recovery_key_opens() {
    let cases: [(Boots<'_>, &str); 5] = [
        (
            Boots {
                image: b"changed",
                ..USUAL
            },
            "PCR 11 has changed",
        ),
        (
            Boots {
                from_outside: b"x",
                ..USUAL
            },
            "PCR 12 has changed",
        ),
        (
            Boots {
                firmware: b"off",
                ..USUAL
            },
            "PCR 7 has changed",
        ),
        (
            Boots {
                version: 4,
                ..USUAL
            },
            "0.0.4, expected at least 0.0.5",
        ),
        (
            Boots {
                has_tpm: false,
                ..USUAL
            },
            "no TPM",
        ),
    ];
    let bench = Bench::new();
    let first = bench.boot(&USUAL).unwrap();
    let recovery = first.recovery.unwrap();
    for (changed, what) in cases {
        let said = bench.boot(&changed).err().unwrap();
        assert!(
            said.contains("stays sealed") && said.contains(what),
            "{said}"
        );
        let slip = Boots {
            recovery: Some("aaaaaa"),
            ..changed
        };
        let said = bench.boot(&slip).err().unwrap();
        assert!(said.contains("expected the letters"), "{said}");
        let other = RecoveryKey(random_key().unwrap()).to_text();
        let other = Boots {
            recovery: Some(&other),
            ..changed
        };
        let said = bench.boot(&other).err().unwrap();
        assert!(said.contains("another machine"), "{said}");
        let given = Boots {
            recovery: Some(&recovery),
            ..changed
        };
        let opened = bench.boot(&given).unwrap();
        assert!(
            opened.key == first.key && opened.recovery.is_none(),
            "{what}"
        );
        // Only a change of the platform can be accepted for good by the operator.
        let is_kept = what.contains("PCR 7");
        assert_eq!(opened.mode == Mode::Tpm, is_kept, "{what}");
        assert_eq!(bench.boot(&changed).is_ok(), is_kept, "{what}");
        if is_kept {
            let given = Boots {
                recovery: Some(&recovery),
                ..USUAL
            };
            // The key is not sealed during a trial: the image before it could not open it.
            let tried = Boots {
                is_trial: true,
                ..given
            };
            assert_eq!(bench.boot(&tried).unwrap().mode, Mode::Recovery);
            // An object that was sealed in between no longer opens, even for an attacker who kept
            // it.
            let file = bench.state.path().join(FOLDER).join(SEALED);
            let old = fs::read(&file).unwrap();
            assert_eq!(bench.boot(&given).unwrap().mode, Mode::Tpm);
            let now = fs::read(&file).unwrap();
            fs::write(&file, old).unwrap();
            assert!(bench.boot(&changed).is_err());
            fs::write(&file, now).unwrap();
        }
        assert!(bench.boot(&USUAL).is_ok(), "{what}");
    }
}

#[test]
fn a_partition_of_another_machine_stays_sealed_until_its_recovery_key_is_given() {
    let (here, mut there) = (Bench::new(), Bench::new());
    let first = here.boot(&USUAL).unwrap();
    let recovery = first.recovery.unwrap();
    there.boot(&USUAL).unwrap();
    there.state = here.state;
    there.key = here.key;
    let said = there.boot(&USUAL).err().unwrap();
    assert!(said.contains("another TPM"), "{said}");
    let given = Boots {
        recovery: Some(&recovery),
        ..USUAL
    };
    let opened = there.boot(&given).unwrap();
    assert!(opened.key == first.key && opened.mode == Mode::Tpm && opened.was_recovered);
    // The person who gave the recovery key has it: it is not shown to the next one at the console.
    let next = there.boot(&USUAL).unwrap();
    assert!(next.key == first.key && next.recovery.is_none());
}

#[test]
fn a_cleared_tpm_opens_nothing_and_another_key_signs_in_vain() {
    let mut bench = Bench::new();
    bench.boot(&USUAL).unwrap();
    Emulator::start(bench.tpm.path()).take().clear().unwrap();
    let said = bench.boot(&USUAL).err().unwrap();
    assert!(said.contains("was cleared"), "{said}");
    let folder = tempfile::tempdir().unwrap();
    bench.key = image_key(folder.path());
    let said = bench.boot(&USUAL).err().unwrap();
    assert!(said.contains("signed by another key"), "{said}");
}

#[test]
fn without_a_tpm_the_vault_keeps_the_key_unless_that_is_forbidden() {
    let bench = Bench::new();
    let none = Boots {
        has_tpm: false,
        ..USUAL
    };
    let opened = bench.boot(&none).unwrap();
    assert!(opened.mode == Mode::Clear && opened.key.is_none());
    let refused = bench.boot_with(&none, true).err().unwrap();
    assert!(refused.what.contains("require_tpm"), "{}", refused.what);
    // A boot that was not measured seals nothing either.
    let unmeasured = Boots {
        image: b"other",
        ..USUAL
    };
    assert_eq!(bench.boot(&unmeasured).unwrap().mode, Mode::Clear);
    // The vault's key is sealed to the TPM as soon as there is one.
    let clear = NodeState::on(bench.state.path()).clear_storage_key();
    let identity = bench.state.path().join("casemate/vault/identity");
    fs::create_dir_all(clear.parent().unwrap()).unwrap();
    fs::write(&identity, b"sealed with it").unwrap();
    let said = bench.boot(&USUAL).err().unwrap();
    assert!(said.contains("is gone"), "{said}");
    fs::write(&clear, [7; KEY_BYTES]).unwrap();
    let sealed = bench.boot(&USUAL).unwrap();
    assert_eq!(*sealed.key.unwrap(), [7; KEY_BYTES]);
    assert!(!clear.exists());
}

#[test]
fn a_key_that_somebody_has_put_there_is_not_used() {
    let bench = Bench::new();
    let clear = NodeState::on(bench.state.path()).clear_storage_key();
    fs::create_dir_all(clear.parent().unwrap()).unwrap();
    fs::write(&clear, [7; KEY_BYTES]).unwrap();
    assert_ne!(*bench.boot(&USUAL).unwrap().key.unwrap(), [7; KEY_BYTES]);
}

#[test]
fn a_cut_while_the_key_is_sealed_leaves_a_machine_that_boots() {
    let bench = Bench::new();
    // The cut comes after the floor, before the file.
    Emulator::start(bench.tpm.path())
        .take()
        .make_indexes(&[], 9, false)
        .unwrap();
    let first = bench.boot(&USUAL).unwrap();
    assert_eq!(first.mode, Mode::Tpm);
    // The cut comes after the file, before the owner is set.
    let mut tpm = Emulator::start(bench.tpm.path());
    tpm.take()
        .set_owner(&owner(first.key.as_ref().unwrap()), &[])
        .unwrap();
    drop(tpm);
    assert!(bench.boot(&USUAL).unwrap().key == first.key);
    assert!(Emulator::start(bench.tpm.path()).take().is_owned().unwrap());
    // After a change of the disk, the object that the TPM had sealed is useless, and a new key is
    // sealed.
    fs::remove_dir_all(bench.state.path().join(FOLDER)).unwrap();
    let said = bench.boot_with(&USUAL, false).err().unwrap();
    assert!(said.next.contains("attach the right disk"), "{}", said.next);
    let to_join = Boots {
        has_token: true,
        ..USUAL
    };
    let anew = bench.boot(&to_join).unwrap();
    assert!(anew.mode == Mode::Tpm && anew.key != first.key);
    // A TPM with another owner is left alone.
    fs::remove_dir_all(bench.state.path().join(FOLDER)).unwrap();
    let mut emulator = Emulator::start(bench.tpm.path());
    emulator.tpm.clear().unwrap();
    emulator.tpm.set_owner(&[], b"somebody else").unwrap();
    drop(emulator);
    let said = bench.boot_with(&to_join, false).err().unwrap();
    assert!(said.next.contains("clear the TPM"), "{}", said.next);
}

#[test]
fn a_blessed_image_keeps_older_ones_out() {
    let bench = Bench::new();
    bench.boot(&USUAL).unwrap();
    let newer = Boots {
        version: 6,
        ..USUAL
    };
    bench.boot(&newer).unwrap();
    // Until the image is blessed, the older one still opens the key.
    bench.boot(&USUAL).unwrap();
    let mut emulator = Emulator::start(bench.tpm.path());
    let opened = bench.boot_on(&mut emulator, &newer, false);
    let mut opened = opened.map_err(|problem| problem.what).unwrap();
    opened.raise_floor().unwrap();
    drop((opened, emulator));
    let said = bench.boot(&USUAL).err().unwrap();
    assert!(said.contains("older"), "{said}");
    bench.boot(&newer).unwrap();
}
