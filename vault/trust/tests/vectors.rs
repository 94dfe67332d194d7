//! Published vectors: X-Wing (draft-connolly-cfrg-xwing-kem, appendix C), HPKE (RFC 9180, appendix A.2.1), Ed25519
//! (Wycheproof).

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use casemate_trust::id::Digest;
use casemate_trust::key::{PublicKey, SealingKey};
use casemate_trust::seal::{Kem, seal};
use hpke::kem::X25519HkdfSha256;
use hpke::{Deserializable as _, Kem as _, OpModeR};

/// Seed, randomness of the encapsulation, SHA-256 of the public key, SHA-256 of the encapsulated key, shared secret.
const XWING: [[&str; 5]; 3] = [
    [
        "7f9c2ba4e88f827d616045507605853ed73b8093f6efbc88eb1a6eacfa66ef26",
        "3cb1eea988004b93103cfb0aeefd2a686e01fa4a58e8a3639ca8a1e3f9ae57e235b8cc873c23dc62b8d260169afa2f75ab916a58d974918835d25e6a435085b2",
        "2e816deebcd76c5c80d0cd2d174478871658e8e2ff42bc9d4a6e486372e856bb",
        "17cd532d657e44c897ca6583e548a5424fc70bf54f99515a4d2bcf99e3469f33",
        "d2df0522128f09dd8e2c92b1e905c793d8f57a54c3da25861f10bf4ca613e384",
    ],
    [
        "badfd6dfaac359a5efbb7bcc4b59d538df9a04302e10c8bc1cbf1a0b3a5120ea",
        "17cda7cfad765f5623474d368ccca8af0007cd9f5e4c849f167a580b14aabdefaee7eef47cb0fca9767be1fda69419dfb927e9df07348b196691abaeb580b32d",
        "c42ba5f8430d7d2c83739338203819f090e8303ce9c8b02107c272bfa5376916",
        "1661ea86d608a1924ba30840cb0a65f13ae051e3aec9cf0f064efc0bc92f2154",
        "f2e86241c64d60f6649fbc6c5b7d17180b780a3f34355e64a85749949c45f150",
    ],
    [
        "ef58538b8d23f87732ea63b02b4fa0f4873360e2841928cd60dd4cee8cc0d4c9",
        "22a96188d032675c8ac850933c7aff1533b94c834adbb69c6115bad4692d8619f90b0cdf8a7b9c264029ac185b70b83f2801f2f4b3f70c593ea3aeeb613a7f1b",
        "6b080d6b84f095342092fa7a22423e58bd681397ad0ef00eac92bd254db4fa95",
        "d3ca5578500344b5896cffc4fd740c9311946b82951df155e6fd86a7966b43c6",
        "953f7f4e8c5b5049bdc771d1dffada0dd961477d1a2ae0988baa7ea6898d893f",
    ],
];

#[test]
fn xwing_of_the_draft() {
    for [seed, randomness, public, encapsulated, shared] in XWING {
        let seed: [u8; 32] = hex::decode(seed).unwrap().try_into().unwrap();
        let key = SealingKey::of_seed(&seed).unwrap();
        assert_eq!(key.fingerprint().to_string(), public);
        let randomness = hex::decode(randomness).unwrap();
        let sealed = seal(&key, b"info", b"aad", b"value", &mut |bytes| {
            bytes.copy_from_slice(&randomness);
        })
        .unwrap();
        assert_eq!(Digest::of(&sealed.enc).to_string(), encapsulated);
        let private = <Kem as hpke::Kem>::PrivateKey::from_bytes(&seed).unwrap();
        let enc = <Kem as hpke::Kem>::EncappedKey::from_bytes(&sealed.enc).unwrap();
        assert_eq!(
            hex::encode(Kem::decap(&private, None, &enc).unwrap().0),
            shared
        );
    }
}

#[test]
fn hpke_of_rfc_9180() {
    let hex = |text: &str| hex::decode(text).unwrap();
    let private = hex("8057991eef8f1f1af18f4a9491d16a1ce333f695d4db8e38da75975c4478e0fb");
    let enc = hex("1afa08d3dec047a643885163f1180476fa7ddb54c6a8029ea33f95796bf2ac4a");
    let ciphertext = hex(
        "1c5250d8034ec2b784ba2cfd69dbdb8af406cfe3ff938e131f0def8c8b60b4db21993c62ce81883d2dd1b51a28",
    );
    let opened = hpke::single_shot_open::<
        casemate_trust::seal::Aead,
        casemate_trust::seal::Kdf,
        X25519HkdfSha256,
    >(
        &OpModeR::Base,
        &<X25519HkdfSha256 as hpke::Kem>::PrivateKey::from_bytes(&private).unwrap(),
        &<X25519HkdfSha256 as hpke::Kem>::EncappedKey::from_bytes(&enc).unwrap(),
        &hex("4f6465206f6e2061204772656369616e2055726e"),
        &ciphertext,
        b"Count-0",
    );
    assert_eq!(opened.unwrap(), b"Beauty is truth, truth beauty");
}

#[test]
fn ed25519_of_wycheproof() {
    let set = wycheproof::eddsa::TestSet::load(wycheproof::eddsa::TestName::Ed25519).unwrap();
    let mut checked = 0;
    for group in set.test_groups {
        let key = PublicKey::from_bytes(group.key.pk.as_slice().try_into().unwrap());
        for test in group.tests {
            let must_fail = test.result.must_fail();
            assert_eq!(
                key.verifies(&test.msg, &test.sig),
                !must_fail,
                "test {}: {}",
                test.tc_id,
                test.comment
            );
            checked += 1;
        }
    }
    assert!(checked > 100, "{checked}");
}
