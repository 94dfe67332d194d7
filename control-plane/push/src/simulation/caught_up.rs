//! Checks what a node must have once everything has been sent.

use super::*;

/// Asserts that the node has everything that the control plane has for it.
pub(super) fn assert_caught_up(world: &World, vault: &Vault, seed: u64) {
    for id in world.bytes.keys() {
        let has = match id {
            StatementId::Root { version } => vault.has.root >= *version,
            StatementId::OnlineKey { version } => vault.has.online >= *version,
            StatementId::Revocations { version } => vault.has.revocations >= *version,
            StatementId::Pool { name, epoch } => {
                name.as_str() == "other" || vault.has.epochs.contains(epoch)
            }
            StatementId::Grant { epoch, .. } => vault.has.grants.contains(epoch),
            StatementId::Image { version, .. } => {
                let held = vault.has.image.map_or(0, |(held, _)| held);
                image_of(&world.bytes[id]).0 == "other" || held >= *version
            }
            StatementId::Tenant { tenant, version } => vault
                .has
                .tenants
                .get(tenant)
                .is_none_or(|has| has.version >= *version),
            StatementId::Freshness {
                tenant,
                version,
                issued,
            } => vault.has_freshness(tenant, (*version, *issued)),
            StatementId::Manifest { tenant, version } => {
                let manifest = Manifest::read(&Envelope::parse(&world.bytes[id]).unwrap()).unwrap();
                let is_here = manifest
                    .functions
                    .values()
                    .any(|wanted| wanted.pools.contains(&name("main")));
                let has = vault.has.tenants.get(tenant).and_then(|has| has.manifest);
                has.map_or(!is_here, |(held, _)| held >= *version)
            }
        };
        assert!(has, "seed {seed}: the node lacks {id}");
    }
    assert_eq!(vault.cursor, Some(world.now()), "seed {seed}");
    // The file is complete, unless a restored backup no longer knows it.
    let newest = world.image(&name("main"));
    let newest = newest.map(|id| image_of(&world.bytes[&id]).1);
    if let Some((digest, part)) = &vault.image
        && newest == Some(*digest)
    {
        assert_eq!(
            Digest::of(part),
            *digest,
            "seed {seed}: a part of the image"
        );
    }
}
