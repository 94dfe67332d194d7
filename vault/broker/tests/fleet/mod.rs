//! A fleet with one node, whose vault is a real child process.

#![allow(dead_code, reason = "each test file uses a part of it")]

mod vault;

use std::path::Path;

use casemate_trust::dsse::Envelope;
use casemate_trust::id::{Digest, FleetId};
use casemate_trust::join::{Grant, JoinRequest, JoinToken};
use casemate_trust::key::{PublicKey, SealingKey, SigningKey};
use casemate_trust::lease::{Claims, Lease};
use casemate_trust::release::{BundleRef, Credential, Limits, Perimeter, Release, Slot};
use casemate_trust::secret::{Reflection, Secret, SecretLimits, SecretPlace, SecretValue};
use casemate_trust::statement::{
    KeySet, Manifest, OnlineKey, Pool, Root, Statement as _, Tenant, Wanted,
};
use casemate_wire::control::vault::{FromVault, Hello, ObjectKind, Verdict};
use zeroize::Zeroizing;

use crate::upstream::Upstream;
pub(crate) use vault::Vault;

/// The secret's value.
pub(crate) const KEY: &str = "sk_live_0123456789abcdef";
/// Expiry of all statements.
pub(crate) const FAR: u64 = 4_000_000_000;

pub(crate) fn key(seed: u8) -> SigningKey {
    SigningKey::from_seed(&[seed; 32]).unwrap()
}

pub(crate) fn random(bytes: &mut [u8]) {
    ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), bytes).unwrap();
}

pub(crate) struct Fleet {
    vault: Option<Vault>,
    folder: tempfile::TempDir,
    pub(crate) fleet: FleetId,
    pub(crate) tenant: Tenant,
    pub(crate) pool: Pool,
    /// Seed of the tenant's key.
    tenant_seed: u8,
    /// A test's changes to the release.
    pub(crate) edit_release: fn(&mut Release),
    /// The consequence of answers that hold the secret.
    pub(crate) reflection: Reflection,
    /// The secret's value; [`KEY`] unless a test sets another.
    pub(crate) value: Vec<u8>,
    upstream_host: String,
    upstream_port: u16,
    ca: String,
    root: Envelope,
    hello: Option<Hello>,
}

impl Fleet {
    pub(crate) async fn start(upstream: &Upstream) -> Self {
        Self::start_with(upstream, "private_addresses = [\"127.0.0.0/8\"]\n").await
    }

    pub(crate) async fn start_with(upstream: &Upstream, config: &str) -> Self {
        let fleet = Self::of_folder(tempfile::tempdir().unwrap(), upstream);
        let control = ("127.0.0.1:1".to_owned(), key(21).public());
        let token = JoinToken::new(
            fleet.fleet,
            control,
            "edge-1".parse().unwrap(),
            "main".parse().unwrap(),
            FAR,
            &mut random,
        );
        let folder = fleet.folder.path();
        std::fs::write(folder.join("token"), token.expose_secret().as_bytes()).unwrap();
        let hosts = format!(
            "[resolver.hosts]\n\"{}\" = [\"{}\"]\n",
            upstream.host, upstream.address
        );
        std::fs::write(
            folder.join("vault.toml"),
            format!("join_token_file = \"token\"\ntrust_anchors = []\n{config}{hosts}"),
        )
        .unwrap();
        Self {
            vault: Some(Vault::start(folder)),
            ..fleet
        }
    }

    /// Starts on the state of an earlier program, whose node was a member.
    pub(crate) async fn of_earlier(folder: tempfile::TempDir, upstream: &Upstream) -> Self {
        let mut fleet = Self::of_folder(folder, upstream);
        fleet.kill_and_restart().await;
        let hello = fleet.vault().wait(|message| match message {
            FromVault::Hello(hello) => Some(*hello),
            _ => None,
        });
        fleet.hello = Some(hello.await);
        fleet
    }

    /// Starts a vault on a folder that it refuses; returns its message and its exit code.
    pub(crate) async fn refused(folder: &Path) -> (String, i32) {
        let mut vault = Vault::start(folder);
        let failed = vault.wait(|message| match message {
            FromVault::Failed { message } => Some(message),
            _ => None,
        });
        let message = failed.await;
        (message, vault.exit_code())
    }

    /// Makes a fleet without a running vault.
    fn of_folder(folder: tempfile::TempDir, upstream: &Upstream) -> Self {
        let root = Root {
            version: 1,
            keys: vec![key(1).public()],
            threshold: 1,
            issued: 1,
            expires: FAR,
        }
        .sign(&[&key(1)]);
        let fleet = FleetId(root.payload_digest().0);
        let pool = Pool {
            fleet,
            name: "main".parse().unwrap(),
            epoch: 1,
            public_key: SealingKey::of_seed(&[5; 32]).unwrap(),
            issued: 1,
            expires: FAR,
        };
        let hosts = vec!["shop.test".parse().unwrap()];
        let tenant = Tenant::first(
            fleet,
            "shop".parse().unwrap(),
            KeySet::single(key(10).public()),
            hosts,
            1,
            FAR,
        );
        let (upstream_host, upstream_port, ca) = (
            upstream.host.clone(),
            upstream.port,
            upstream.ca_pem.clone(),
        );
        Self {
            vault: None,
            folder,
            fleet,
            tenant,
            pool,
            tenant_seed: 10,
            edit_release: |_| {},
            reflection: Reflection::default(),
            value: KEY.as_bytes().to_vec(),
            upstream_host,
            upstream_port,
            ca,
            root,
            hello: None,
        }
    }

    pub(crate) fn vault(&mut self) -> &mut Vault {
        self.vault.as_mut().unwrap()
    }

    /// The folder with the vault's configuration and its state.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Ends the vault.
    pub(crate) fn kill(&mut self) {
        self.vault = None;
    }

    /// Sets limits, as shell commands, that apply from the next start on.
    pub(crate) fn limit(&self, limits: &str) {
        std::fs::write(self.folder.path().join("limits"), limits).unwrap();
    }

    /// The leases that the vault keeps as evidence.
    pub(crate) fn kept_leases(&self) -> Vec<Lease> {
        let text = std::fs::read(self.folder.path().join("vault/leases.json")).unwrap();
        let leases: Vec<Envelope> = serde_json::from_slice(&text).unwrap();
        leases
            .iter()
            .map(|lease| Lease::read(lease).unwrap())
            .collect()
    }

    /// The vault's description of itself.
    pub(crate) async fn describe(&mut self) -> serde_json::Value {
        self.vault().describe().await
    }

    /// The vault's file for init, once it exists.
    pub(crate) fn image_file(&self) -> Option<serde_json::Value> {
        let text = std::fs::read(self.folder.path().join("vault/image.json")).ok()?;
        Some(serde_json::from_slice(&text).unwrap())
    }

    /// Changes the file while no vault runs, and starts one.
    pub(crate) fn spoil_image_file_and_restart(&mut self) {
        self.vault = None;
        std::fs::write(self.folder.path().join("vault/image.json"), "{}").unwrap();
        self.vault = Some(Vault::start(self.folder.path()));
    }

    pub(crate) async fn kill_and_restart(&mut self) {
        self.vault = None;
        self.vault = Some(Vault::start(self.folder.path()));
    }

    /// Removes files that the vault needs to write its records, while it runs.
    pub(crate) fn lose_the_records(&self) {
        std::fs::remove_dir_all(self.folder.path().join("vault/records/blobs")).unwrap();
    }

    /// Ends the vault, damages its records from `at` on, and starts it again.
    pub(crate) fn damage_records_and_restart(&mut self, at: usize) {
        /// Distance between two wrong bytes: no message of sled's log stays whole.
        const STEP: usize = 64;
        self.vault = None;
        let path = self.folder.path().join("vault/records/db");
        let mut bytes = std::fs::read(&path).unwrap();
        for byte in bytes.iter_mut().skip(at).step_by(STEP) {
            *byte ^= 0x55;
        }
        std::fs::write(&path, bytes).unwrap();
        self.vault = Some(Vault::start(self.folder.path()));
    }

    /// Becomes a member with a lease.
    pub(crate) async fn join(&mut self) {
        let nonce = self.join_without_lease().await;
        assert_eq!(self.answer_lease(&nonce, 20).await, None);
    }

    /// Becomes a member; returns the nonce that awaits an answer.
    pub(crate) async fn join_without_lease(&mut self) -> [u8; 32] {
        let hello = self
            .vault()
            .wait(|message| {
                if let FromVault::Hello(hello) = message {
                    Some(*hello)
                } else {
                    None
                }
            })
            .await;
        let request = Envelope::parse(hello.join_request.as_ref().unwrap()).unwrap();
        let token: JoinToken = std::fs::read_to_string(self.folder.path().join("token"))
            .unwrap()
            .parse()
            .unwrap();
        let request = JoinRequest::check(&request, &token.record().unwrap(), 1000).unwrap();
        self.hello = Some(hello);
        self.fill(request.node_key, &request.sealing_key).await;
        self.vault()
            .wait(|message| matches!(message, FromVault::Joined).then_some(()))
            .await;
        self.vault()
            .wait(|message| {
                if let FromVault::LeaseWanted { nonce } = message {
                    Some(nonce)
                } else {
                    None
                }
            })
            .await
    }

    /// The root's first statement.
    pub(crate) fn root(&self) -> Vec<u8> {
        self.root.to_bytes()
    }

    /// Submits all statements of the root, and the grant.
    pub(crate) async fn fill(&mut self, node_key: PublicKey, sealing_key: &SealingKey) {
        let public = key(20).public();
        let online = OnlineKey {
            fleet: self.fleet,
            version: 1,
            liveness: public,
            quic: key(21).public(),
            api: public,
            issued: 1,
            expires: FAR,
        };
        let grant = Grant::seal(&self.pool, &[5; 32], node_key, sealing_key, &mut random).unwrap();
        let objects = [
            (ObjectKind::Root, self.root.to_bytes()),
            (ObjectKind::OnlineKey, online.sign(&[&key(1)]).to_bytes()),
            (ObjectKind::Pool, self.pool.sign(&[&key(1)]).to_bytes()),
            (ObjectKind::Grant, grant.to_bytes()),
            (ObjectKind::Tenant, self.tenant.sign(&[&key(1)]).to_bytes()),
        ];
        for (kind, bytes) in objects {
            assert_eq!(
                self.vault().submit(kind, bytes).await,
                Verdict::Accepted,
                "{kind:?}"
            );
        }
    }

    /// Switches to another tenant, which the root has signed too.
    pub(crate) async fn admit_another_tenant(&mut self, name: &str, seed: u8) {
        let tenant = Tenant::first(
            self.fleet,
            name.parse().unwrap(),
            KeySet::single(key(seed).public()),
            vec![format!("{name}.test").parse().unwrap()],
            1,
            FAR,
        );
        self.become_tenant(tenant, seed);
        let statement = self.tenant.sign(&[&key(1)]).to_bytes();
        let verdict = self.vault().submit(ObjectKind::Tenant, statement).await;
        assert_eq!(verdict, Verdict::Accepted);
    }

    /// Switches to another tenant, whose key has this seed.
    pub(crate) fn become_tenant(&mut self, tenant: Tenant, seed: u8) {
        (self.tenant, self.tenant_seed) = (tenant, seed);
    }

    /// Answers a nonce with the key of this seed; returns the refusal's code, if any.
    pub(crate) async fn answer_lease(&mut self, nonce: &[u8; 32], seed: u8) -> Option<String> {
        self.answer_lease_with(nonce, seed, Claims::default()).await
    }

    /// The same, with claims.
    pub(crate) async fn answer_lease_with(
        &mut self,
        nonce: &[u8; 32],
        seed: u8,
        claims: Claims,
    ) -> Option<String> {
        let node = PublicKey::from_bytes(self.hello.as_ref().unwrap().node_key);
        let lease = Lease {
            fleet: self.fleet,
            node,
            nonce: nonce.to_vec(),
            claims,
        }
        .sign(&[&key(seed)]);
        match self
            .vault()
            .submit(ObjectKind::Lease, lease.to_bytes())
            .await
        {
            Verdict::Refused { code, .. } => Some(code),
            _ => None,
        }
    }

    /// The node's public keys from its join request.
    pub(crate) fn node_keys(&self) -> (PublicKey, SealingKey) {
        let hello = self.hello.as_ref().unwrap();
        let request = Envelope::parse(hello.join_request.as_ref().unwrap()).unwrap();
        let request = JoinRequest::read(&request).unwrap();
        (request.node_key, request.sealing_key)
    }

    pub(crate) fn release(&self) -> Release {
        let mut release = Release {
            fleet: self.fleet,
            tenant: self.tenant.id,
            function: "web".parse().unwrap(),
            bundle: BundleRef {
                digest: Digest([4; 32]),
                bytes: 10,
            },
            entry: "main.js".into(),
            hosts: vec![format!("{}.test", self.tenant.name).parse().unwrap()],
            perimeter: Perimeter::default(),
            limits: Limits::default(),
            vars: vec![],
            egress: vec![],
            credentials: vec![Credential {
                binding: "pay".parse().unwrap(),
                secret: "KEY".parse().unwrap(),
                host: self.upstream_host.parse().unwrap(),
                port: self.upstream_port,
                methods: vec!["POST".parse().unwrap()],
                paths: vec!["/v1/*".parse().unwrap()],
                slot: Slot::Bearer,
                auto: false,
                ca: Some(self.ca.parse().unwrap()),
                ranges: false,
            }],
            dynamic_code: false,
            owner: String::new(),
        };
        (self.edit_release)(&mut release);
        release
    }

    pub(crate) fn secret(&self) -> Secret {
        let limits = SecretLimits {
            ports: vec![self.upstream_port],
            ca: Some(Digest::of(self.ca.as_bytes())),
            reflection: self.reflection,
            ..SecretLimits::to_hosts(vec![self.upstream_host.parse().unwrap()])
        };
        let name = "KEY".parse().unwrap();
        let pool = self.pool.name.clone();
        let place = SecretPlace {
            fleet: self.fleet,
            tenant: self.tenant.id,
            name,
            version: 1,
            pool,
            epoch: 1,
            limits,
        };
        let value = SecretValue::parse(Zeroizing::new(self.value.clone())).unwrap();
        // Deterministic, so that the digest is; only for tests.
        Secret::seal(place, &self.pool, &value, &mut |bytes| bytes.fill(6)).unwrap()
    }

    pub(crate) fn manifest(&self, version: u64) -> Manifest {
        let wanted = Wanted {
            release: Digest::of(&self.release().to_bytes()),
            fallbacks: vec![],
            pools: vec![self.pool.name.clone()],
        };
        let secret = Digest::of(&self.secret().to_bytes());
        Manifest {
            fleet: self.fleet,
            tenant: self.tenant.id,
            tenant_version: 1,
            version,
            functions: [("web".parse().unwrap(), wanted)].into(),
            secrets: [(
                "KEY".parse().unwrap(),
                [(self.pool.name.clone(), secret)].into(),
            )]
            .into(),
            freshness: None,
            notes: [].into(),
            issued: 1,
            expires: FAR,
        }
    }

    pub(crate) async fn submit_manifest(&mut self, manifest: &Manifest) -> Verdict {
        let bytes = manifest.sign(&[&key(self.tenant_seed)]).to_bytes();
        self.vault().submit(ObjectKind::Manifest, bytes).await
    }

    /// Submits the manifest, what it misses, and the manifest again; returns the release's digest.
    pub(crate) async fn deploy(&mut self, version: u64) -> [u8; 32] {
        let digest = self.show_manifest(version).await;
        while self.vault().plan().await.functions.is_empty() {}
        digest
    }

    /// The same, without waiting for the plan.
    pub(crate) async fn show_manifest(&mut self, version: u64) -> [u8; 32] {
        let manifest = self.manifest(version);
        assert!(
            matches!(self.submit_manifest(&manifest).await, Verdict::Missing { digests } if digests.len() == 2)
        );
        let (release, secret) = (self.release().to_bytes(), self.secret().to_bytes());
        let digest = Digest::of(&release).0;
        assert_eq!(
            self.vault().submit(ObjectKind::Release, release).await,
            Verdict::Accepted
        );
        assert_eq!(
            self.vault().submit(ObjectKind::Secret, secret).await,
            Verdict::Accepted
        );
        assert_eq!(self.submit_manifest(&manifest).await, Verdict::Accepted);
        digest
    }
}
