//! Releases, secrets and grants from an untrusted sender.
#![no_main]

use casemate_trust::join::Grant;
use casemate_trust::release::Release;
use casemate_trust::secret::Secret;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(release) = Release::parse(bytes) {
        assert_eq!(
            Release::parse(&release.to_bytes()).expect("what was parsed parses again"),
            release
        );
    }
    if let Ok(secret) = Secret::parse(bytes) {
        assert_eq!(
            Secret::parse(&secret.to_bytes()).expect("what was parsed parses again"),
            secret
        );
    }
    let _grant = Grant::parse(bytes);
});
