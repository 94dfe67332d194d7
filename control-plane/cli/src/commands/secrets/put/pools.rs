//! The pools that a secret is sealed to.

use std::collections::BTreeSet;

use casemate_trust::judge::{Judge, Refusal};
use casemate_trust::late::Late;
use casemate_trust::name::Name;
use casemate_trust::statement::Pool;

use crate::args::SecretPut;
use crate::error::{Code, Error};
use crate::machine::now;
use crate::memory::refused;
use crate::project::{DEFAULT_POOL, Project};
use crate::tenancy::Tenancy;

/// The pools that the secret is sealed to, each with its newest key, which must not have expired.
pub(super) fn pools(
    tenancy: &Tenancy<'_>,
    args: &SecretPut,
    project: Option<&Project>,
) -> Result<Vec<Pool>, Error> {
    let judge = tenancy.session.known.judge();
    let mut names: BTreeSet<Name> = args.pools.iter().cloned().collect();
    if names.is_empty() {
        let functions = tenancy
            .manifest()
            .into_iter()
            .flat_map(|manifest| manifest.functions.values());
        names.extend(functions.flat_map(|wanted| wanted.pools.clone()));
        names.extend(
            project
                .into_iter()
                .flat_map(|project| project.pools.clone()),
        );
    }
    if names.is_empty() {
        let mut all = judge.pools().map(|pool| pool.name.clone());
        match (all.next(), all.next()) {
            (Some(only), None) => names.extend([only]),
            _ => names.extend(DEFAULT_POOL.parse::<Name>()),
        }
    }
    names
        .iter()
        .map(|name| sealable(judge, name, now()))
        .collect()
}

/// A pool with its newest key, which has not expired.
fn sealable(judge: &Judge, name: &Name, clock: u64) -> Result<Pool, Error> {
    let pool = judge.newest_pool(name).ok_or_else(|| {
        let known: Vec<_> = judge.pools().map(|pool| pool.name.to_string()).collect();
        let next = format!(
            "say which with `--pool NAME`; there are {}",
            known.join(", ")
        );
        Error::new(Code::NotFound, format!("there is no pool {name}"), next)
    })?;
    let (expires, clock) = (pool.expires, judge.time(clock));
    if expires <= clock {
        let late = Late { expires, clock };
        return Err(refused("pool", Refusal::PoolExpired(late)).at(name));
    }
    if judge.is_exposed(name, pool.epoch) {
        return Err(Error::new(
            Code::Refused,
            format!(
                "a revoked node knows the newest key of pool {name}, epoch {}: nothing is sealed \
                 to it",
                pool.epoch
            ),
            format!("ask the operator to run `casemate pool rotate {name}`, then try again"),
        ));
    }
    Ok(pool.clone())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use casemate_trust::id::FleetId;
    use casemate_trust::key::{SealingKey, SigningKey};
    use casemate_trust::statement::{Root, Statement as _};

    use super::*;
    use crate::memory::tests::accept;

    #[test]
    fn nothing_is_sealed_to_an_expired_key_even_if_an_older_one_holds() {
        let key = SigningKey::from_seed(&[1; 32]).unwrap();
        let root = Root {
            version: 1,
            keys: vec![key.public()],
            threshold: 1,
            issued: 1,
            expires: 9000,
        };
        let root = root.sign(&[&key]);
        let mut judge = Judge::new(FleetId(root.payload_digest().0), None);
        accept(&mut judge, &root);
        let mut pool = Pool {
            fleet: judge.fleet(),
            name: "main".parse().unwrap(),
            epoch: 1,
            public_key: SealingKey::of_seed(&[5; 32]).unwrap(),
            issued: 1,
            expires: 9000,
        };
        accept(&mut judge, &pool.sign(&[&key]));
        (pool.epoch, pool.expires) = (2, 5000);
        pool.public_key = SealingKey::of_seed(&[6; 32]).unwrap();
        accept(&mut judge, &pool.sign(&[&key]));
        assert_eq!(sealable(&judge, &pool.name, 4999).unwrap().epoch, 2);
        let error = sealable(&judge, &pool.name, 5000).unwrap_err();
        assert!(
            error.to_text().contains("casemate pool rotate"),
            "{}",
            error.to_text()
        );
        let mut list = casemate_trust::revocation::Revocations {
            fleet: judge.fleet(),
            version: 1,
            nodes: Vec::new(),
            exposed: BTreeMap::new(),
            issued: 1,
        };
        list.revoke(key.public(), &pool.name, Some(1));
        accept(&mut judge, &list.sign(&[&key]));
        assert_eq!(sealable(&judge, &pool.name, 1).unwrap().epoch, 2);
        list.version = 2;
        list.revoke(key.public(), &pool.name, Some(2));
        accept(&mut judge, &list.sign(&[&key]));
        let error = sealable(&judge, &pool.name, 1).unwrap_err();
        assert!(error.to_text().contains("a revoked node knows"));
        let unknown = sealable(&judge, &"eu".parse().unwrap(), 1).unwrap_err();
        assert_eq!(unknown.code(), Code::NotFound);
    }
}
