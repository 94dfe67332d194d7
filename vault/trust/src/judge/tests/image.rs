//! Images: never a lower version, never other bytes under the same version, and only the root's.

use super::*;
use crate::image::Image;

fn image(world: &World, version: &str, content: u8, pools: &[&str]) -> Image {
    Image {
        fleet: world.fleet,
        version: version.parse().unwrap(),
        digest: Digest([content; 32]),
        bytes: 100,
        pools: pools.iter().map(|pool| name(pool)).collect(),
        issued: 1,
        expires: LATER,
    }
}

fn code(judge: &mut Judge, image: &Image) -> &'static str {
    let envelope = image.sign(&[&key(1)]);
    judge.accept(&envelope, NOW).unwrap_err().code()
}

#[test]
fn the_honest_path_rises() {
    let mut world = World::new();
    for version in ["1.0.0", "1.0.1", "2.0.0"] {
        let image = image(&world, version, 1, &["main", "other"]);
        let envelope = image.sign(&[&key(1)]);
        assert_eq!(world.judge.accept(&envelope, NOW), Ok(Accepted::New));
        assert_eq!(world.judge.accept(&envelope, NOW), Ok(Accepted::Held));
        assert_eq!(world.judge.image(&name("main")), Some(&image));
    }
    // This node is of pool main: images of other pools are not remembered.
    assert_eq!(world.judge.image(&name("other")), None);
    assert_eq!(world.judge.memory().images.len(), 1);
}

#[test]
fn lower_other_bytes_foreign_expired_and_unsigned_images_are_refused() {
    let mut world = World::new();
    let good = image(&world, "1.2.3", 1, &["main"]);
    let accepted = world.judge.accept(&good.sign(&[&key(1)]), NOW);
    assert_eq!(accepted, Ok(Accepted::New));
    let before = world.judge.memory().clone();
    let lower = image(&world, "1.2.2", 1, &["main"]);
    let other = image(&world, "1.2.3", 2, &["main"]);
    let elsewhere = image(&world, "1.2.4", 1, &["other"]);
    let mut foreign = image(&world, "1.2.4", 1, &["main"]);
    foreign.fleet = FleetId([9; 32]);
    let mut expired = image(&world, "1.2.4", 1, &["main"]);
    expired.expires = NOW;
    let judge = &mut world.judge;
    assert_eq!(code(judge, &lower), "image_version_lower");
    assert_eq!(code(judge, &other), "image_same_version_other_digest");
    assert_eq!(code(judge, &elsewhere), "image_pool_other");
    assert_eq!(code(judge, &foreign), "fleet_other");
    assert_eq!(code(judge, &expired), "image_expired");
    let next = Image {
        version: "1.2.4".parse().unwrap(),
        ..good.clone()
    };
    // Signed by a stranger, by a tenant, and by the root of a statement of another kind.
    for seed in [66, 10] {
        let refused = judge.accept(&next.sign(&[&key(seed)]), NOW);
        assert_eq!(refused, Err(Refusal::SignatureThreshold));
    }
    let pool = serde_json::to_vec(&world.pool).unwrap();
    let pool = Envelope::sign(Image::TYPE, pool, &[&key(1)]);
    let refused = judge.accept(&pool, NOW).unwrap_err();
    assert_eq!(refused.code(), "statement_malformed");
    // A new statement about the same image needs the root's signature too.
    let longer = Image {
        expires: LATER + 1,
        ..good.clone()
    };
    let refused = judge.accept(&longer.sign(&[&key(66)]), NOW);
    assert_eq!(refused, Err(Refusal::SignatureThreshold));
    assert_eq!(*judge.memory(), before);
    assert_eq!(judge.image(&name("main")), Some(&good));
    let accepted = judge.accept(&longer.sign(&[&key(1)]), NOW);
    assert_eq!(accepted, Ok(Accepted::New));
}

#[test]
fn an_image_outlives_a_restart_a_change_of_root_and_its_own_expiry() {
    let mut world = World::new();
    let envelope = image(&world, "3.0.0", 1, &["main"]).sign(&[&key(1)]);
    world.judge.accept(&envelope, NOW).unwrap();
    let second = root(2, &[2]).sign(&[&key(1), &key(2)]);
    world.judge.accept(&second, NOW).unwrap();
    let written = serde_json::to_vec(world.judge.memory()).unwrap();
    let memory: Memory = serde_json::from_slice(&written).unwrap();
    let mut judge = Judge::remembering(memory, Some(name("main")));
    judge.accept(&second, LATER - 1).unwrap();
    assert_eq!(judge.accept(&envelope, LATER + 1), Ok(Accepted::Again));
    assert_eq!(judge.accept(&envelope, LATER + 1), Ok(Accepted::Held));
    let lower = image(&world, "2.9.9", 1, &["main"]).sign(&[&key(2)]);
    let refused = judge.accept(&lower, NOW).unwrap_err();
    assert_eq!(refused.code(), "image_version_lower");
}

/// The owners that hold every pool: the control plane and the operator.
#[test]
fn each_pool_has_its_own_newest_image() {
    let mut world = World::new();
    let first = root(1, &[1]).sign(&[&key(1)]);
    world.judge = Judge::new(world.fleet, None);
    world.judge.accept(&first, NOW).unwrap();
    let both = image(&world, "1.0.0", 1, &["main", "other"]);
    let canary = image(&world, "1.1.0", 2, &["other"]);
    for image in [&both, &canary] {
        let accepted = world.judge.accept(&image.sign(&[&key(1)]), NOW);
        assert_eq!(accepted, Ok(Accepted::New));
    }
    assert_eq!(world.judge.image(&name("main")), Some(&both));
    assert_eq!(world.judge.image(&name("other")), Some(&canary));
    // A lower version for one of its pools is refused.
    let mixed = image(&world, "1.0.5", 3, &["main", "other"]);
    assert_eq!(code(&mut world.judge, &mixed), "image_version_lower");
    // Each is still the newest of a pool, and held again after a restart.
    let memory = world.judge.memory().clone();
    let mut judge = Judge::remembering(memory, None);
    judge.accept(&first, NOW).unwrap();
    for image in [&both, &canary] {
        let accepted = judge.accept(&image.sign(&[&key(1)]), NOW);
        assert_eq!(accepted, Ok(Accepted::Again));
    }
    let held: Vec<_> = judge.images().collect();
    assert_eq!(held, [(&name("main"), &both), (&name("other"), &canary)]);
    // The canary's image goes to the rest under a statement of its own.
    let all = image(&world, "1.1.0", 2, &["main", "other"]);
    let accepted = judge.accept(&all.sign(&[&key(1)]), NOW);
    assert_eq!(accepted, Ok(Accepted::New));
    assert_eq!(judge.image(&name("main")), Some(&all));
}

#[test]
fn a_statement_goes_when_it_is_the_newest_of_no_pool() {
    let mut judge = Judge::new(World::new().fleet, None);
    judge.accept(&root(1, &[1]).sign(&[&key(1)]), NOW).unwrap();
    let world = World::new();
    let mut dropped = |version, content, pools: &[&str]| {
        let signed = image(&world, version, content, pools).sign(&[&key(1)]);
        let change = judge.decide(&signed, NOW, &no_objects).unwrap();
        let drops = change.rows().iter().filter_map(|row| match row {
            Row::Drop(RowKey::Image(version, _)) => Some(version.to_string()),
            _ => None,
        });
        let drops: Vec<_> = drops.collect();
        judge.accept(&signed, NOW).unwrap();
        drops
    };
    let none: [&str; 0] = [];
    assert_eq!(dropped("1.0.0", 1, &["main", "canary"]), none);
    assert_eq!(
        dropped("2.0.0", 2, &["canary"]),
        none,
        "the image is still that of pool main"
    );
    // The same version for all.
    assert_eq!(dropped("2.0.0", 2, &["main", "canary"]), ["1.0.0", "2.0.0"]);
    assert_eq!(dropped("3.0.0", 3, &["other"]), none);
}
