//! Tests against an emulated TPM (swtpm).

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use casemate_measured_boot::{Approval, ApprovalKey, sealed_policy};

use casemate_trust::image::ImageVersion;

use super::*;

const SECRET: &[u8] = b"a storage key";
const OWNER: &[u8] = b"whoever has opened the key";
/// The value of PCR 11 after `boot` with this image.
const IMAGE: &[u8] = b"image";

/// An emulator whose state is in a folder; a new emulator over the same folder is the same TPM
/// after a restart.
pub(crate) struct Emulator {
    child: Child,
    socket: PathBuf,
    pub(crate) tpm: Tpm,
}

impl Emulator {
    pub(crate) fn start(folder: &Path) -> Self {
        // Each emulator has its own socket: one that ends removes its socket, perhaps after the
        // next has begun.
        static STARTED: AtomicUsize = AtomicUsize::new(0);
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let socket = folder.join(format!("socket-{number}"));
        let spawn = || {
            Command::new("swtpm")
                .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear"])
                .args(["--tpmstate", &format!("dir={}", folder.display())])
                .args([
                    "--server",
                    &format!("type=unixio,path={}", socket.display()),
                ])
                .stderr(Stdio::null())
                .spawn()
                .expect("is swtpm installed? `scripts/setup test` does it")
        };
        let mut child = spawn();
        let until = Instant::now() + Duration::from_secs(20);
        let carrier = loop {
            match UnixStream::connect(&socket) {
                Ok(stream) => break stream,
                Err(error) => assert!(Instant::now() < until, "{error}"),
            }
            // An emulator ends at once if its predecessor, which is ending, still locks the folder.
            if child.try_wait().expect("a child").is_some() {
                child = spawn();
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        let carrier = Box::new(carrier);
        Self {
            child,
            socket,
            tpm: Tpm::over(carrier),
        }
    }

    /// The emulator's TPM, for use elsewhere.
    pub(crate) fn take(&mut self) -> Tpm {
        let carrier = std::mem::replace(&mut self.tpm.carrier, Box::new(io::empty()));
        Tpm::over(carrier)
    }

    /// Measures what firmware and stub measure.
    pub(crate) fn boot(&mut self, image: &[u8], from_outside: &[u8], firmware: &[u8]) {
        self.extend(11, image);
        self.extend(7, firmware);
        if !from_outside.is_empty() {
            self.extend(12, from_outside);
        }
    }

    fn extend(&mut self, pcr: u32, event: &[u8]) {
        let pcr = Entity::permanent(pcr);
        let mut digests = TpmlDigestValues::default();
        let event = digest(&SHA256, event);
        let digest = TpmuHa::Digest(TpmBuffer::try_from(event.as_ref()).unwrap());
        let hash_alg = TpmAlgId::Sha256;
        digests.try_push(TpmtHa { hash_alg, digest }).unwrap();
        let command = TpmPcrExtendCommand {
            handles: [handle(pcr.handle)],
            digests,
        };
        let auth = Auth::Password(&[]);
        let _: TpmPcrExtendResponse = run(&mut *self.tpm.carrier, &command, &[&pcr], auth).unwrap();
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// A new key for images.
pub(crate) fn image_key(folder: &Path) -> ApprovalKey {
    let file = folder.join("image.key");
    let made = Command::new("openssl")
        .args(["genrsa", "-out"])
        .arg(&file)
        .arg(KEY_BITS.to_string())
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    ApprovalKey::from_pem(&std::fs::read(&file).unwrap()).unwrap()
}

pub(crate) fn approval(key: &ApprovalKey, image: &[u8], version: u64) -> SignedApproval {
    let version = ImageVersion::from_u64(version).unwrap();
    let pcr11 = PcrValue::ZERO.extended(image);
    let pcr12 = PcrValue::ZERO;
    key.approve(Approval {
        version,
        pcr11,
        pcr12,
    })
    .unwrap()
}

#[test]
fn a_seal_opens_for_the_image_that_was_approved_and_for_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let key = image_key(folder.path());
    let signed = approval(&key, IMAGE, 5);
    let sealed = {
        let mut emulator = Emulator::start(folder.path());
        emulator.boot(IMAGE, b"", b"secure boot");
        let tpm = &mut emulator.tpm;
        assert_eq!(tpm.floor().unwrap(), None);
        assert!(!tpm.is_owned().unwrap());
        let pcrs = tpm.pcrs().unwrap();
        assert_eq!(pcrs[&11], signed.approval.pcr11);
        let policy = sealed_policy(key.public(), pcrs[&7]);
        tpm.make_indexes(&[], 5, false).unwrap();
        let sealed = tpm.seal(&[], SECRET, &policy).unwrap();
        tpm.set_owner(&[], OWNER).unwrap();
        assert!(tpm.is_owned().unwrap());
        assert_eq!(*tpm.unseal(&sealed, key.public(), &signed).unwrap(), SECRET);
        // The object opens again, until the boot is over.
        assert_eq!(*tpm.unseal(&sealed, key.public(), &signed).unwrap(), SECRET);
        tpm.end_opening().unwrap();
        tpm.unseal(&sealed, key.public(), &signed).unwrap_err();
        sealed
    };
    let other_key = tempfile::tempdir().unwrap();
    let other_key = image_key(other_key.path());
    let newer = approval(&key, b"newer", 6);
    let older = approval(&key, b"older", 4);
    let foreign = approval(&other_key, IMAGE, 5);
    type Boot<'a> = (&'a [u8], &'a [u8], &'a [u8], &'a SignedApproval, bool);
    let boots: [Boot<'_>; 7] = [
        (IMAGE, b"", b"secure boot", &signed, true),
        (b"newer", b"", b"secure boot", &newer, true),
        (b"older", b"", b"secure boot", &older, false),
        (b"changed", b"", b"secure boot", &signed, false),
        (IMAGE, b"init=/bin/sh", b"secure boot", &signed, false),
        (IMAGE, b"", b"other keys", &signed, false),
        (IMAGE, b"", b"secure boot", &foreign, false),
    ];
    for (image, from_outside, firmware, signed, opens) in boots {
        let mut emulator = Emulator::start(folder.path());
        emulator.boot(image, from_outside, firmware);
        let opened = emulator.tpm.unseal(&sealed, key.public(), signed);
        let case = String::from_utf8_lossy(image);
        assert_eq!(opened.is_ok(), opens, "{case}: {:?}", opened.err());
    }
}

#[test]
fn the_floor_rises_when_the_owner_authorises_it_and_never_falls() {
    let folder = tempfile::tempdir().unwrap();
    let mut emulator = Emulator::start(folder.path());
    let tpm = &mut emulator.tpm;
    tpm.make_indexes(&[], 5, false).unwrap();
    tpm.set_owner(&[], OWNER).unwrap();
    let fault = tpm.raise_floor(b"somebody else", 6).unwrap_err();
    assert!(fault.is_authorization(), "{fault}");
    assert!(
        tpm.make_indexes(&[], 1, false)
            .unwrap_err()
            .is_authorization()
    );
    assert!(tpm.set_owner(&[], &[]).unwrap_err().is_authorization());
    assert!(!tpm.recovery_was_shown().unwrap());
    let fault = tpm.set_recovery_shown(&[]).unwrap_err();
    assert!(fault.is_authorization(), "{fault}");
    tpm.set_recovery_shown(OWNER).unwrap();
    assert!(tpm.recovery_was_shown().unwrap());
    tpm.raise_floor(OWNER, 7).unwrap();
    tpm.raise_floor(OWNER, 6).unwrap();
    assert_eq!(tpm.floor().unwrap(), Some(7));
    // A cleared TPM has nothing left to open.
    tpm.clear().unwrap();
    assert_eq!(tpm.floor().unwrap(), None);
    assert!(!tpm.is_owned().unwrap());
    // Where it is unknown whether the key was shown, it counts as shown.
    assert!(tpm.recovery_was_shown().unwrap());
}

#[test]
fn another_tpm_opens_nothing() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let key = image_key(one.path());
    let signed = approval(&key, IMAGE, 5);
    let mut here = Emulator::start(one.path());
    here.boot(IMAGE, b"", b"");
    here.tpm.make_indexes(&[], 5, false).unwrap();
    let policy = sealed_policy(key.public(), here.tpm.pcrs().unwrap()[&7]);
    let sealed = here.tpm.seal(&[], SECRET, &policy).unwrap();
    let mut there = Emulator::start(two.path());
    there.boot(IMAGE, b"", b"");
    let fault = there.tpm.unseal(&sealed, key.public(), &signed);
    assert!(fault.unwrap_err().is_foreign());
    there.tpm.make_indexes(&[], 5, false).unwrap();
    let fault = there
        .tpm
        .unseal(&sealed, key.public(), &signed)
        .unwrap_err();
    assert!(fault.is_foreign(), "{fault}");
    here.tpm.clear().unwrap();
    here.tpm.make_indexes(&[], 5, false).unwrap();
    let fault = here.tpm.unseal(&sealed, key.public(), &signed).unwrap_err();
    assert!(fault.is_foreign(), "{fault}");
}

#[test]
fn an_answer_that_is_changed_on_the_way_is_noticed() {
    /// A carrier that flips a bit of every response long enough to be that of a sealed object.
    struct Liar(UnixStream);
    impl io::Read for Liar {
        fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
            let read = self.0.read(to)?;
            if let Some(byte) = to[..read].get_mut(60).filter(|_| to_is_unseal(read)) {
                *byte ^= 1;
            }
            Ok(read)
        }
    }
    impl io::Write for Liar {
        fn write(&mut self, from: &[u8]) -> io::Result<usize> {
            self.0.write(from)
        }
        fn flush(&mut self) -> io::Result<()> {
            self.0.flush()
        }
    }
    /// Whether a response may be that of `TPM2_Unseal` of `SECRET`, by its length: header, size,
    /// data, nonce, attributes, proof.
    fn to_is_unseal(length: usize) -> bool {
        length == 10 + 4 + 2 + SECRET.len() + 2 + 32 + 1 + 2 + 32
    }
    let folder = tempfile::tempdir().unwrap();
    let key = image_key(folder.path());
    let signed = approval(&key, IMAGE, 5);
    let mut emulator = Emulator::start(folder.path());
    emulator.boot(IMAGE, b"", b"");
    emulator.tpm.make_indexes(&[], 5, false).unwrap();
    let policy = sealed_policy(key.public(), emulator.tpm.pcrs().unwrap()[&7]);
    let sealed = emulator.tpm.seal(&[], SECRET, &policy).unwrap();
    // The emulator accepts one client at a time.
    emulator.tpm.carrier = Box::new(io::empty());
    let stream = UnixStream::connect(&emulator.socket).unwrap();
    emulator.tpm.carrier = Box::new(Liar(stream));
    let fault = emulator.tpm.unseal(&sealed, key.public(), &signed);
    assert!(matches!(fault, Err(Fault::Forged)), "{:?}", fault.err());
}
