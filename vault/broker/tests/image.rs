//! Images of the machine, judged by the vault: init reads what the root has signed, and versions
//! never go down.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod fleet;
mod upstream;

use casemate_trust::id::{Digest, FleetId};
use casemate_trust::image::Image;
use casemate_trust::statement::Statement as _;
use casemate_wire::control::vault::{FromVault, ObjectKind, Verdict};
use fleet::{FAR, Fleet, KEY, key};
use serde_json::json;
use upstream::Upstream;

fn image(fleet: &Fleet, version: &str, content: u8) -> Image {
    Image {
        fleet: fleet.fleet,
        version: version.parse().unwrap(),
        digest: Digest([content; 32]),
        bytes: 1000,
        pools: vec!["main".parse().unwrap(), "other".parse().unwrap()],
        issued: 1,
        expires: FAR,
    }
}

async fn submit(fleet: &mut Fleet, image: &Image, seed: u8) -> String {
    let bytes = image.sign(&[&key(seed)]).to_bytes();
    match fleet.vault().submit(ObjectKind::Image, bytes).await {
        Verdict::Refused { code, .. } => code,
        verdict => format!("{verdict:?}"),
    }
}

/// The next image that the vault reports.
async fn said(fleet: &mut Fleet) -> (u64, [u8; 32]) {
    let said = fleet.vault().wait(|message| match message {
        FromVault::Image(image) => Some((image.version, image.digest)),
        _ => None,
    });
    said.await
}

fn file(version: &str, content: &str) -> serde_json::Value {
    json!({ "version": version, "digest": content.repeat(32), "bytes": 1000 })
}

#[tokio::test(flavor = "multi_thread")]
async fn init_reads_only_what_the_root_has_signed_and_never_a_lower_version() {
    let upstream = Upstream::start(KEY).await;
    let mut fleet = Fleet::start(&upstream).await;
    let first = image(&fleet, "1.2.3", 0x11);
    // Nothing is accepted before the root has arrived.
    assert_eq!(submit(&mut fleet, &first, 1).await, "root_unknown");
    fleet.join().await;
    assert_eq!(fleet.image_file(), None);
    assert_eq!(submit(&mut fleet, &first, 1).await, "Accepted");
    assert_eq!(said(&mut fleet).await, (first.version.as_u64(), [0x11; 32]));
    assert_eq!(fleet.image_file(), Some(file("1.2.3", "11")));

    let (lower, same) = (image(&fleet, "1.2.2", 0x22), image(&fleet, "1.2.3", 0x22));
    let next = image(&fleet, "1.2.4", 0x33);
    let mut foreign = next.clone();
    foreign.fleet = FleetId([9; 32]);
    let mut expired = next.clone();
    expired.expires = 2;
    let mut elsewhere = next.clone();
    elsewhere.pools = vec!["other".parse().unwrap()];
    let refused = [
        (&lower, 1, "image_version_lower"),
        (&same, 1, "image_same_version_other_digest"),
        (&next, 66, "signature_threshold"),
        // A tenant's key.
        (&next, 10, "signature_threshold"),
        (&foreign, 1, "fleet_other"),
        (&expired, 1, "image_expired"),
        (&elsewhere, 1, "image_pool_other"),
    ];
    for (image, seed, code) in refused {
        assert_eq!(submit(&mut fleet, image, seed).await, code);
        assert_eq!(fleet.image_file(), Some(file("1.2.3", "11")), "{code}");
    }

    // The image survives a kill, is reported again, and a changed file is detected.
    fleet.kill_and_restart().await;
    assert_eq!(said(&mut fleet).await, (first.version.as_u64(), [0x11; 32]));
    let have = fleet.vault().have().await;
    let payload = first.sign(&[&key(1)]).payload_digest();
    assert_eq!(have.image, Some((first.version.as_u64(), payload.0)));
    assert_eq!(submit(&mut fleet, &lower, 1).await, "image_version_lower");
    fleet.spoil_image_file_and_restart();
    assert_eq!(said(&mut fleet).await.1, [0x11; 32]);
    assert_eq!(fleet.image_file(), Some(file("1.2.3", "11")));

    assert_eq!(submit(&mut fleet, &next, 1).await, "Accepted");
    assert_eq!(said(&mut fleet).await, (next.version.as_u64(), [0x33; 32]));
    assert_eq!(fleet.image_file(), Some(file("1.2.4", "33")));

    // The records are lost, but the memory is not: the vault asks for them, and accepts no lower
    // version meanwhile.
    fleet.damage_records_and_restart(0);
    let refill = fleet.vault().wait(|message| match message {
        FromVault::Refill { .. } => Some(()),
        _ => None,
    });
    refill.await;
    let have = fleet.vault().have().await;
    assert_eq!(have.image, None);
    assert_eq!(submit(&mut fleet, &first, 1).await, "image_version_lower");
    // Known by its digest, although the root that signed it must be submitted again.
    assert_eq!(submit(&mut fleet, &next, 1).await, "Accepted");
    assert_eq!(fleet.image_file(), Some(file("1.2.4", "33")));
}
