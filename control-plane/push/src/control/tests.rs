//! How the control plane's end sends a manifest.

use std::sync::Arc;

use super::*;
use crate::simulation::{Dice, Vault, World, member, tenant};
use crate::{ToControl, VERSIONS, encode};

#[test]
fn a_manifest_is_read_once_however_often_its_objects_are_asked_for() {
    let (mut world, mut dice) = (World::new(1), Dice::new(1));
    world.publish_manifest(tenant(1), &mut dice);
    let mut control = ControlEnd::member(member(), VERSIONS.newest);
    let hello = ToControl::Hello(Box::new(Vault::default().hello()));
    control.receive(&encode(&hello)).unwrap();
    control.poll_event(&world).unwrap();
    let first = control.listing(tenant(1), &world).unwrap();
    let again = control.listing(tenant(1), &world).unwrap();
    assert!(Arc::ptr_eq(&first, &again));
    world.publish_manifest(tenant(1), &mut dice);
    let next = control.listing(tenant(1), &world).unwrap();
    assert!(next.revision > first.revision && next.digest != first.digest);
    assert!(control.listing(tenant(2), &world).is_none());
}
