//! A fleet with root key 1, pool `main`, tenant `shop` with key 10, one function, one secret.

use std::collections::HashMap;

use zeroize::Zeroizing;

use super::*;
use crate::release::{BundleRef, Credential, Limits, Perimeter, Slot};
use crate::secret::{SecretLimits, SecretPlace, SecretValue};
use crate::statement::{Manifest, Wanted};

pub(super) const NOW: Seconds = 1_000_000;
pub(super) const LATER: Seconds = 2_000_000;

pub(super) fn key(seed: u8) -> SigningKey {
    SigningKey::from_seed(&[seed; 32]).unwrap()
}

pub(super) fn name(text: &str) -> Name {
    text.parse().unwrap()
}

pub(super) fn root(version: u64, seeds: &[u8]) -> Root {
    Root {
        version,
        keys: seeds.iter().map(|seed| key(*seed).public()).collect(),
        threshold: 1,
        issued: 1,
        expires: LATER,
    }
}

impl Judge {
    /// Decides and applies, for tests of the rules: nothing is written.
    pub(super) fn accept(
        &mut self,
        envelope: &Envelope,
        clock: Seconds,
    ) -> Result<Accepted, Refusal> {
        self.accept_with(envelope, clock, &no_objects)
    }

    pub(super) fn accept_with(
        &mut self,
        envelope: &Envelope,
        clock: Seconds,
        objects: Objects<'_>,
    ) -> Result<Accepted, Refusal> {
        let change = self.decide(envelope, clock, objects)?;
        let accepted = change.accepted();
        let (committed, ()) = change.commit(|_| Ok::<_, Refusal>(()))?;
        self.apply(committed);
        Ok(accepted)
    }
}

/// A fleet with root key 1, pool `main`, tenant `shop` with key 10, one function, one secret.
#[derive(Clone)]
pub(super) struct World {
    pub(super) judge: Judge,
    pub(super) fleet: FleetId,
    pub(super) objects: HashMap<Digest, Vec<u8>>,
    pub(super) tenant: Tenant,
    pub(super) pool: Pool,
}

impl World {
    pub(super) fn new() -> Self {
        let first = root(1, &[1]).sign(&[&key(1)]);
        let fleet = FleetId(first.payload_digest().0);
        let mut judge = Judge::new(fleet, Some(name("main")));
        judge.accept(&first, NOW).unwrap();
        let pool = Pool {
            fleet,
            name: name("main"),
            epoch: 1,
            public_key: SealingKey::of_seed(&[5; 32]).unwrap(),
            issued: 1,
            expires: LATER,
        };
        judge.accept(&pool.sign(&[&key(1)]), NOW).unwrap();
        let hosts = vec!["shop.test".parse().unwrap()];
        let tenant = Tenant::first(
            fleet,
            name("shop"),
            KeySet::single(key(10).public()),
            hosts,
            1,
            LATER,
        );
        judge.accept(&tenant.sign(&[&key(1)]), NOW).unwrap();
        Self {
            judge,
            fleet,
            objects: HashMap::new(),
            tenant,
            pool,
        }
    }

    pub(super) fn release(&self) -> Release {
        let credential = Credential {
            binding: "pay".parse().unwrap(),
            secret: "KEY".parse().unwrap(),
            host: "api.test".parse().unwrap(),
            port: 443,
            methods: vec![],
            paths: vec![],
            slot: Slot::Bearer,
            auto: false,
            ca: None,
            ranges: false,
        };
        Release {
            fleet: self.fleet,
            tenant: self.tenant.id,
            function: name("web"),
            bundle: BundleRef {
                digest: Digest([4; 32]),
                bytes: 10,
            },
            entry: "main.js".into(),
            hosts: vec!["shop.test".parse().unwrap()],
            perimeter: Perimeter::default(),
            limits: Limits::default(),
            vars: vec![],
            egress: vec![],
            credentials: vec![credential],
            dynamic_code: false,
            owner: String::new(),
        }
    }

    pub(super) fn secret(&self, change: impl FnOnce(&mut SecretPlace)) -> Secret {
        let limits = SecretLimits::to_hosts(vec!["api.test".parse().unwrap()]);
        let mut place = SecretPlace {
            fleet: self.fleet,
            tenant: self.tenant.id,
            name: "KEY".parse().unwrap(),
            version: 1,
            pool: name("main"),
            epoch: 1,
            limits,
        };
        change(&mut place);
        let value = SecretValue::parse(Zeroizing::new(b"hunter2".to_vec())).unwrap();
        Secret::seal(place, &self.pool, &value, &mut |bytes| bytes.fill(6)).unwrap()
    }

    pub(super) fn put(&mut self, bytes: Vec<u8>) -> Digest {
        let digest = Digest::of(&bytes);
        self.objects.insert(digest, bytes);
        digest
    }

    pub(super) fn manifest(&mut self, version: u64) -> Manifest {
        let (release, secret) = (self.release().to_bytes(), self.secret(|_| ()).to_bytes());
        let wanted = Wanted {
            release: self.put(release),
            fallbacks: vec![],
            pools: vec![name("main")],
        };
        Manifest {
            fleet: self.fleet,
            tenant: self.tenant.id,
            tenant_version: 1,
            version,
            functions: [(name("web"), wanted)].into(),
            secrets: [(
                "KEY".parse().unwrap(),
                [(name("main"), self.put(secret))].into(),
            )]
            .into(),
            freshness: None,
            notes: [].into(),
            issued: 1,
            expires: LATER,
        }
    }

    pub(super) fn accept(&mut self, envelope: &Envelope) -> Result<Accepted, &'static str> {
        let objects = self.objects.clone();
        self.judge
            .accept_with(envelope, NOW, &|digest| objects.get(digest).cloned())
            .map_err(|refusal| refusal.code())
    }

    /// Returns the refusal of the manifest with a release of this shape.
    pub(super) fn with_release(
        change: impl FnOnce(&mut Release),
    ) -> Result<Accepted, &'static str> {
        let mut world = Self::new();
        let mut manifest = world.manifest(1);
        let mut release = world.release();
        change(&mut release);
        let digest = world.put(release.to_bytes());
        manifest
            .functions
            .values_mut()
            .for_each(|wanted| wanted.release = digest);
        world.accept(&manifest.sign(&[&key(10)]))
    }

    pub(super) fn with_secret(
        change: impl FnOnce(&mut SecretPlace),
    ) -> Result<Accepted, &'static str> {
        let mut world = Self::new();
        let mut manifest = world.manifest(1);
        let digest = world.secret(change).to_bytes();
        let digest = world.put(digest);
        manifest
            .secrets
            .values_mut()
            .for_each(|pools| pools.values_mut().for_each(|listed| *listed = digest));
        world.accept(&manifest.sign(&[&key(10)]))
    }
}
