//! Single behaviours of the two ends.

use casemate_trust::id::{Digest, FleetId};
use casemate_trust::key::PublicKey;

use crate::message::MAX_BUNDLES_IN_HAND;
use crate::simulation::{Dice, Link, Vault, World, member, name, next_frame, tenant};
use crate::*;

fn served(world: &World) -> ControlEnd {
    let mut control = ControlEnd::member(member(), VERSIONS.newest);
    control
        .receive(&encode(&ToControl::Hello(Box::new(
            Vault::default().hello(),
        ))))
        .unwrap();
    assert!(matches!(
        control.poll_event(world),
        Ok(Some(ControlEvent::Hello(_)))
    ));
    control
}

#[test]
fn a_node_that_is_not_a_member_may_only_join() {
    let (world, vault) = (World::new(1), Vault::default());
    let first_word = |message| {
        let mut control = ControlEnd::stranger(VERSIONS.newest);
        control.receive(&encode(&message)).unwrap();
        control.poll_event(&world).unwrap_err()
    };
    let hello = ToControl::Hello(Box::new(vault.hello()));
    assert_eq!(first_word(hello), Violation::Unknown);
    let lease = ToControl::Lease { nonce: [0; 32] };
    assert!(matches!(first_word(lease), Violation::Unexpected(_)));
    let mut control = ControlEnd::stranger(VERSIONS.newest);
    let join = encode(&ToControl::Join { request: vec![1] });
    control.receive(&join).unwrap();
    assert!(matches!(
        control.poll_event(&world),
        Ok(Some(ControlEvent::Join { .. }))
    ));
    control.receive(&join).unwrap();
    assert!(matches!(
        control.poll_event(&world),
        Err(Violation::Unexpected(_))
    ));
}

#[test]
fn a_join_becomes_a_membership_on_the_same_connection() {
    let (mut world, mut vault, mut dice) = (World::new(1), Vault::default(), Dice::new(1));
    world.put_next(|version| StatementId::Root { version });
    let (mut node, mut control) = (
        NodeEnd::joining(vec![1]),
        ControlEnd::stranger(VERSIONS.newest),
    );
    control.receive(&node.poll_transmit().unwrap()).unwrap();
    assert!(matches!(
        control.poll_event(&world),
        Ok(Some(ControlEvent::Join { .. }))
    ));
    control.join_pending();
    control.admitted(member());
    for wanted in [NodeEvent::JoinPending, NodeEvent::Admitted] {
        node.receive(&next_frame(&mut control, &world).unwrap())
            .unwrap();
        assert_eq!(node.poll_event().unwrap(), Some(wanted));
    }
    node.hello(vault.hello()).unwrap();
    let mut link = Link {
        node,
        control,
        ..Link::new(&Vault::default())
    };
    link.settle(&world, &mut vault, &mut dice);
    assert_eq!(vault.has.root, 1);
}

#[test]
fn a_hello_of_somebody_else_is_refused() {
    let (world, hello) = (World::new(1), Vault::default().hello());
    let hellos = [
        Hello {
            node: name("edge-2"),
            ..hello.clone()
        },
        Hello {
            node_key: PublicKey::from_bytes([1; 32]),
            ..hello.clone()
        },
        Hello {
            fleet: FleetId([1; 32]),
            ..hello.clone()
        },
        Hello {
            protocol: VERSIONS.newest + 1,
            ..hello
        },
    ];
    for hello in hellos {
        let mut control = ControlEnd::member(member(), VERSIONS.newest);
        control
            .receive(&encode(&ToControl::Hello(Box::new(hello))))
            .unwrap();
        assert!(matches!(
            control.poll_event(&world),
            Err(Violation::Identity | Violation::Protocol { .. })
        ));
    }
}

#[test]
fn answers_to_what_was_not_sent_and_floods_are_violations() {
    let world = World::new(1);
    let mut control = served(&world);
    control
        .receive(&encode(&ToControl::Ack {
            revision: 1,
            id: StatementId::Root { version: 1 },
        }))
        .unwrap();
    assert!(matches!(
        control.poll_event(&world),
        Err(Violation::Unexpected(_))
    ));
    let mut control = served(&world);
    for number in 0..=MAX_BUNDLES_IN_HAND as u8 {
        let digest = Digest([number; 32]);
        control
            .receive(&encode(&ToControl::FetchBundle { digest, offset: 0 }))
            .unwrap();
    }
    let last = (0..=MAX_BUNDLES_IN_HAND)
        .map(|_| control.poll_event(&world))
        .last()
        .unwrap();
    assert_eq!(last, Err(Violation::Flood("bundles")));
}

#[test]
fn objects_of_another_pool_are_not_given() {
    let mut world = World::new(1);
    let bytes = b"another pool's release".to_vec();
    let digest = Digest::of(&bytes);
    world.objects.insert(digest, bytes);
    let mut control = served(&world);
    control
        .receive(&encode(&ToControl::FetchObjects {
            tenant: tenant(1),
            digests: vec![digest],
        }))
        .unwrap();
    let asked = control.poll_event(&world);
    assert_eq!(asked, Ok(Some(ControlEvent::FetchObjects)));
    let frames: Vec<_> = std::iter::from_fn(|| next_frame(&mut control, &world)).collect();
    assert!(frames.contains(&encode(&ToNode::Unavailable { digest })));
}

#[test]
fn an_empty_request_for_objects_is_a_violation_and_each_request_is_an_event() {
    let world = World::new(1);
    let mut control = served(&world);
    let ask = |digests| {
        encode(&ToControl::FetchObjects {
            tenant: tenant(1),
            digests,
        })
    };
    let digest = Digest([1; 32]);
    control.receive(&ask(vec![digest]).repeat(2)).unwrap();
    control.receive(&ask(vec![])).unwrap();
    for _ in 0..2 {
        let asked = control.poll_event(&world);
        assert_eq!(asked, Ok(Some(ControlEvent::FetchObjects)));
    }
    assert!(matches!(
        control.poll_event(&world),
        Err(Violation::Unexpected(_))
    ));
}

#[test]
fn an_object_with_another_digest_ends_the_connection() {
    let mut node = NodeEnd::member(Vault::default().hello());
    node.receive(&encode(&ToNode::Welcome {
        now: World::new(1).now(),
    }))
    .unwrap();
    assert!(matches!(
        node.poll_event(),
        Ok(Some(NodeEvent::Welcome { .. }))
    ));
    let forged = ToNode::Object {
        tenant: tenant(1),
        digest: Digest([1; 32]),
        kind: ObjectKind::Secret,
        bytes: vec![1],
    };
    node.receive(&encode(&forged)).unwrap();
    assert_eq!(node.poll_event(), Err(Violation::Digest));
}

#[test]
fn a_control_plane_cannot_fill_a_nodes_memory() {
    let mut node = NodeEnd::member(Vault::default().hello());
    node.receive(&encode(&ToNode::Welcome {
        now: World::new(1).now(),
    }))
    .unwrap();
    node.poll_event().unwrap();
    let bytes = vec![7; casemate_trust::release::MAX_RELEASE_BYTES];
    let object = ToNode::Object {
        tenant: tenant(1),
        digest: Digest::of(&bytes),
        kind: ObjectKind::Release,
        bytes,
    };
    let frame = encode(&object);
    let taken = (0..1000)
        .take_while(|_| node.receive(&frame).is_ok() && node.poll_event().is_ok())
        .count();
    assert_eq!(
        taken,
        MAX_AHEAD_BYTES / casemate_trust::release::MAX_RELEASE_BYTES
    );
    let mut node = NodeEnd::member(Vault::default().hello());
    node.receive(&encode(&ToNode::Welcome {
        now: World::new(1).now(),
    }))
    .unwrap();
    node.poll_event().unwrap();
    for version in 1.. {
        let id = StatementId::Root { version };
        node.receive(&encode(&ToNode::Statement {
            revision: version,
            id,
            bytes: vec![],
        }))
        .unwrap();
        if let Err(violation) = node.poll_event() {
            assert_eq!(
                (violation, version),
                (Violation::Flood("statements"), MAX_UNACKED as u64 + 1)
            );
            break;
        }
    }
}

#[test]
fn logs_that_come_too_fast_are_counted_not_kept() {
    let mut node = NodeEnd::member(Vault::default().hello());
    node.poll_transmit();
    for number in 0..2000 {
        node.log(LogEntry {
            tenant: tenant(1),
            function: name("web"),
            request: None,
            level: LogLevel::Info,
            message: "x".repeat(100_000),
            time_ms: number,
            failure: None,
        });
    }
    assert_eq!(node.poll_transmit(), None, "not before the welcome");
    let world = World::new(1);
    node.receive(&encode(&ToNode::Welcome { now: world.now() }))
        .unwrap();
    node.poll_event().unwrap();
    let mut control = served(&world);
    let (mut kept, mut gone) = (0, 0);
    while let Some(frame) = node.poll_transmit() {
        control.receive(&frame).unwrap();
        while let Some(ControlEvent::Logs { entries, lost }) = control.poll_event(&world).unwrap() {
            kept += entries.len() as u64;
            gone += lost;
        }
    }
    assert_eq!(kept + gone, 2000);
    assert!(gone > 0);
}

/// Statements that a control plane sends to a node that says this hello.
fn sent_after(world: &World, hello: Hello) -> Vec<StatementId> {
    let mut control = ControlEnd::member(member(), VERSIONS.newest);
    let mut node = NodeEnd::member(hello);
    control.receive(&node.poll_transmit().unwrap()).unwrap();
    while control.poll_event(world).unwrap().is_some() {}
    while let Some(frame) = next_frame(&mut control, world) {
        node.receive(&frame).unwrap();
    }
    let events = std::iter::from_fn(|| node.poll_event().unwrap());
    let statement = |event| match event {
        NodeEvent::Statement { id, .. } => Some(id),
        _ => None,
    };
    events.filter_map(statement).collect()
}

/// A world in which tenant 1 has a manifest for this pool.
fn world_with_manifest(dice: &mut Dice) -> World {
    loop {
        let mut world = World::new(1);
        world.publish_manifest(tenant(1), dice);
        if sent_after(&world, Vault::default().hello()).len() == 2 {
            return world;
        }
    }
}

#[test]
fn a_cursor_of_another_store_or_from_the_future_is_no_help() {
    let world = world_with_manifest(&mut Dice::new(1));
    let mut hello = Vault::default().hello();
    hello.has.more_tenants = true;
    let now = world.now();
    let other = StoreId([7; 16]);
    let cursors = [
        (Some(now), 0),
        (None, 2),
        (
            Some(Cursor {
                store: other,
                ..now
            }),
            2,
        ),
        (
            Some(Cursor {
                revision: now.revision + 1,
                ..now
            }),
            2,
        ),
    ];
    for (cursor, count) in cursors {
        hello.cursor = cursor;
        assert_eq!(sent_after(&world, hello.clone()).len(), count, "{cursor:?}");
    }
}

#[test]
fn another_manifest_of_the_same_version_is_sent_so_that_its_refusal_shows() {
    let world = world_with_manifest(&mut Dice::new(1));
    let mut hello = Vault::default().hello();
    let has = |version, digest| TenantHas {
        version: 1,
        manifest: Some((version, digest)),
        freshness: None,
        is_stored: true,
    };
    hello.has.tenants.insert(tenant(1), has(1, Digest([1; 32])));
    let id = StatementId::Manifest {
        tenant: tenant(1),
        version: 1,
    };
    assert_eq!(sent_after(&world, hello.clone()), [id]);
    hello.has.tenants.insert(tenant(1), has(2, Digest([1; 32])));
    assert_eq!(sent_after(&world, hello), []);
}

#[test]
fn a_node_says_what_it_does_not_keep_once_it_is_known() {
    let mut link = Link::new(&Vault::default());
    let not_stored = NotStored {
        tenant: tenant(1),
        version: 3,
        code: "bundle_quota".to_owned(),
        message: "x".repeat(2 * MAX_TEXT_BYTES),
    };
    let world = World::new(1);
    link.settle(&world, &mut Vault::default(), &mut Dice::new(1));
    link.node.not_stored(not_stored.clone()).unwrap();
    let frame = link.node.poll_transmit().unwrap();
    link.control.receive(&frame).unwrap();
    let said = link.control.poll_event(&world).unwrap();
    let Some(ControlEvent::NotStored(said)) = said else {
        panic!("{said:?}");
    };
    assert_eq!((said.tenant, said.version), (not_stored.tenant, 3));
    assert_eq!(said.code, "bundle_quota");
    assert!(said.message.len() <= MAX_TEXT_BYTES);
}

/// A hostile control plane sends invalid pieces of an image, and a hostile node requests invalid
/// pieces.
#[test]
fn pieces_of_images_are_bounded_and_come_one_at_a_time() {
    let world = World::new(1);
    let mut vault = Vault::default();
    let mut link = Link::new(&vault);
    link.settle(&world, &mut vault, &mut Dice::new(1));
    let digest = Digest::of(b"image");
    let header = |offset, total| bundle::Header {
        digest,
        offset,
        total,
    };
    let node = &mut link.node;
    assert_eq!(node.expects(&header(0, 10)), None);
    node.fetch_image(digest, 100, 50).unwrap();
    assert!(node.fetch_image(digest, 150, 50).is_err());
    // Not before it was asked for; then only from there, and no more than that.
    assert_eq!(node.expects(&header(100, 150)), None);
    let asked = node.poll_transmit().unwrap();
    for wrong in [header(0, 50), header(99, 149), header(100, 151)] {
        assert_eq!(node.expects(&wrong), None);
    }
    for right in [header(100, 150), header(100, 101)] {
        assert_eq!(node.expects(&right), Some(Expected::ImagePiece));
    }
    // A bundle of the size of an image is none.
    node.fetch_bundle(Digest::of(b"bundle"), 0).unwrap();
    node.poll_transmit().unwrap();
    let large = bundle::Header {
        digest: Digest::of(b"bundle"),
        ..header(200 << 20, 201 << 20)
    };
    assert_eq!(node.expects(&large), None);

    let control = &mut link.control;
    control.receive(&asked).unwrap();
    let event = control.poll_event(&world).unwrap();
    assert!(matches!(
        event,
        Some(ControlEvent::FetchImage {
            offset: 100,
            bytes: 50,
            ..
        })
    ));
    let again = ToControl::FetchImage {
        digest,
        offset: 0,
        bytes: 1,
    };
    control.receive(&encode(&again)).unwrap();
    assert!(control.poll_event(&world).unwrap().is_some());
    control.receive(&encode(&again)).unwrap();
    assert!(matches!(
        control.poll_event(&world),
        Err(Violation::Flood(_))
    ));
    let mut control = Link::new(&vault).control;
    let bytes = MAX_IMAGE_PIECE_BYTES + 1;
    control
        .receive(&encode(&ToControl::FetchImage {
            digest,
            offset: 0,
            bytes,
        }))
        .unwrap();
    assert!(matches!(
        control.poll_event(&world),
        Err(Violation::TooLarge(_))
    ));
}
