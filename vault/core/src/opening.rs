//! Opens grants and secrets with the node's and the pool's keys.

use casemate_trust::join::{GRANT_INFO, Grant};
use casemate_trust::key::{SEED_BYTES, SealingKey};
use casemate_trust::seal::{Aead, Kdf, Kem};
use casemate_trust::secret::{SECRET_INFO, Secret, SecretValue};
use casemate_trust::statement::Pool;
use hpke::{Deserializable as _, OpModeR};
use zeroize::Zeroizing;

use crate::keys::{NodeKeys, PoolKeys};

/// Why a sealed value does not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpeningError {
    /// The value was made for another node, pool, epoch, tenant, name, version or limits, or was
    /// changed on the way.
    #[error("the sealed value does not open: it was changed, or sealed for something else")]
    Sealed,
    /// The pool's key of that epoch was never granted to this node.
    #[error("this node holds no key of that pool and epoch")]
    NoKey,
    /// A grant contains another key than the root has signed.
    #[error("the grant holds another key than the root signed for this pool")]
    NotThePools,
    /// The opened value cannot be carried in a header.
    #[error("the opened value is not a valid secret (length or characters)")]
    Value,
}

impl OpeningError {
    /// The stable code.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Sealed => "sealed_value_unopenable",
            Self::NoKey => "pool_key_missing",
            Self::NotThePools => "grant_key_not_the_pools",
            Self::Value => "secret_value",
        }
    }
}

fn open(
    seed: &[u8; SEED_BYTES],
    enc: &[u8],
    info: &[u8],
    aad: &[u8],
    ciphertext: &[u8],
) -> Result<Zeroizing<Vec<u8>>, OpeningError> {
    let private =
        <Kem as hpke::Kem>::PrivateKey::from_bytes(seed).map_err(|_| OpeningError::Sealed)?;
    let enc = <Kem as hpke::Kem>::EncappedKey::from_bytes(enc).map_err(|_| OpeningError::Sealed)?;
    let opened = hpke::single_shot_open::<Aead, Kdf, Kem>(
        &OpModeR::Base,
        &private,
        &enc,
        info,
        ciphertext,
        aad,
    );
    opened.map(Zeroizing::new).map_err(|_| OpeningError::Sealed)
}

/// Opens a grant to this node and checks that it contains the key that the root has signed.
///
/// # Errors
/// See [`OpeningError`].
pub fn open_grant(
    grant: &Grant,
    node: &NodeKeys,
    pool: &Pool,
) -> Result<Zeroizing<[u8; SEED_BYTES]>, OpeningError> {
    let is_for_us = grant.node_key == node.identity().public() && grant.fleet == pool.fleet;
    if !is_for_us || grant.pool != pool.name || grant.epoch != pool.epoch {
        return Err(OpeningError::Sealed);
    }
    let (_, sealing) = node.expose_secret();
    let opened = open(
        sealing,
        &grant.enc,
        GRANT_INFO,
        &grant.aad(&pool.public_key),
        &grant.ciphertext,
    )?;
    let seed = Zeroizing::new(
        <[u8; SEED_BYTES]>::try_from(opened.as_slice()).map_err(|_| OpeningError::NotThePools)?,
    );
    let public = SealingKey::of_seed(&seed).map_err(|_| OpeningError::NotThePools)?;
    if public == pool.public_key {
        Ok(seed)
    } else {
        Err(OpeningError::NotThePools)
    }
}

/// Opens a secret that the newest manifest lists. The judge has checked its place; the AAD is built
/// from that place again. Calls use [`crate::kept::Kept`], which caches the result.
///
/// # Errors
/// See [`OpeningError`].
pub fn open_secret(secret: &Secret, keys: &PoolKeys) -> Result<SecretValue, OpeningError> {
    let place = &secret.place;
    let seed = keys
        .expose_secret(&place.pool, place.epoch)
        .ok_or(OpeningError::NoKey)?;
    let opened = open(
        seed,
        &secret.enc,
        SECRET_INFO,
        &place.aad(),
        &secret.ciphertext,
    )?;
    SecretValue::parse(opened).map_err(|_| OpeningError::Value)
}

#[cfg(test)]
pub(crate) mod tests {
    use casemate_trust::id::{Digest, FleetId, TenantId};
    use casemate_trust::release::SlotKind;
    use casemate_trust::secret::{Reflection, SecretLimits, SecretPlace};

    use super::*;

    const FLEET: FleetId = FleetId([1; 32]);

    fn pool(seed: u8, epoch: u64) -> Pool {
        let public_key = SealingKey::of_seed(&[seed; 32]).unwrap();
        Pool {
            fleet: FLEET,
            name: "main".parse().unwrap(),
            epoch,
            public_key,
            issued: 1,
            expires: 2,
        }
    }

    pub(crate) fn secret() -> Secret {
        let limits = SecretLimits::to_hosts(vec!["a.test".parse().unwrap()]);
        let name = "KEY".parse().unwrap();
        let place = SecretPlace {
            fleet: FLEET,
            tenant: TenantId([2; 32]),
            name,
            version: 1,
            pool: "main".parse().unwrap(),
            epoch: 1,
            limits,
        };
        let value = SecretValue::parse(Zeroizing::new(b"hunter2".to_vec())).unwrap();
        Secret::seal(place, &pool(5, 1), &value, &mut |bytes| bytes.fill(9)).unwrap()
    }

    pub(crate) fn keys() -> PoolKeys {
        let mut keys = PoolKeys::default();
        keys.insert("main".parse().unwrap(), 1, Zeroizing::new([5; 32]));
        keys
    }

    #[test]
    fn a_secret_opens_in_its_place_and_in_no_other() {
        assert_eq!(
            open_secret(&secret(), &keys()).unwrap().expose_secret(),
            b"hunter2"
        );
        let moves: [fn(&mut Secret); 14] = [
            |s| s.place.tenant = TenantId([3; 32]),
            |s| s.place.fleet = FleetId([3; 32]),
            |s| s.place.name = "OTHER".parse().unwrap(),
            |s| s.place.version = 2,
            |s| s.place.limits.hosts.push("evil.test".parse().unwrap()),
            |s| s.place.limits.methods.push("GET".parse().unwrap()),
            |s| s.place.limits.paths.push("/*".parse().unwrap()),
            |s| s.place.limits.slots.push(SlotKind::Query),
            |s| s.place.limits.ports.push(8443),
            |s| s.place.limits.names.push("x".into()),
            |s| s.place.limits.ca = Some(Digest([7; 32])),
            |s| s.place.limits.reflection = Reflection::Scrub,
            |s| s.ciphertext[0] ^= 1,
            |s| s.enc[1119] ^= 1,
        ];
        for change in moves {
            let mut moved = secret();
            change(&mut moved);
            assert_eq!(
                open_secret(&moved, &keys()).unwrap_err(),
                OpeningError::Sealed
            );
        }
        let mut later = secret();
        later.place.epoch = 2;
        assert_eq!(
            open_secret(&later, &keys()).unwrap_err(),
            OpeningError::NoKey
        );
    }

    #[test]
    fn a_grant_of_a_key_that_is_not_the_signed_one_is_refused() {
        let node = NodeKeys::from_seeds(&[1; 32], &[2; 32]).unwrap();
        let (signed, own) = (pool(5, 1), pool(66, 1));
        let grant = |pool: &Pool, seed: u8| {
            Grant::seal(
                pool,
                &[seed; 32],
                node.identity().public(),
                node.sealing_key(),
                &mut |bytes| bytes.fill(4),
            )
            .unwrap()
        };
        assert_eq!(
            *open_grant(&grant(&signed, 5), &node, &signed).unwrap(),
            [5; 32]
        );
        assert_eq!(
            open_grant(&grant(&signed, 66), &node, &signed).unwrap_err(),
            OpeningError::NotThePools
        );
        assert_eq!(
            open_grant(&grant(&own, 66), &node, &signed).unwrap_err(),
            OpeningError::Sealed
        );
        let other = NodeKeys::from_seeds(&[7; 32], &[8; 32]).unwrap();
        assert_eq!(
            open_grant(&grant(&signed, 5), &other, &signed).unwrap_err(),
            OpeningError::Sealed
        );
    }
}
