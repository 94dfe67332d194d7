//! A fleet with one pool and one tenant, and the statements that an operator and a tenant sign.

use casemate_api::fleet::PublicKeys;
use casemate_api::token::{MadeToken, NewToken, Scope};
use casemate_trust::dsse::Envelope;
use casemate_trust::id::{Digest, FleetId, TenantId};
use casemate_trust::join::{Grant, JoinRequest, JoinToken};
use casemate_trust::key::{SealingKey, SigningKey};
use casemate_trust::name::Name;
use casemate_trust::release::{BundleRef, Limits, Perimeter, Release};
use casemate_trust::secret::{Secret, SecretLimits, SecretPlace, SecretValue};
use casemate_trust::statement::{
    KeySet, Manifest, OnlineKey, Pool, Root, Statement as _, Tenant, Wanted,
};
use zeroize::Zeroizing;

use crate::{Client, Plane};

pub const LATER: u64 = 4_000_000_000;
pub const POOL_SEED: [u8; 32] = [5; 32];
pub const NODE_SEALING_SEED: [u8; 32] = [6; 32];

pub fn key(seed: u8) -> SigningKey {
    SigningKey::from_seed(&[seed; 32]).unwrap()
}

pub fn name(text: &str) -> Name {
    text.parse().unwrap()
}

pub fn random(bytes: &mut [u8]) {
    use ring::rand::SecureRandom as _;
    ring::rand::SystemRandom::new().fill(bytes).unwrap();
}

/// A fleet with one tenant. The test has its keys, and signs the statements of the operator and of
/// the tenant.
pub struct Fleet {
    pub id: FleetId,
    pub root: Envelope,
    pub pool: Pool,
    pub tenant: Tenant,
    pub tenant_token: String,
}

impl Fleet {
    /// Root key 1, pool `main`, tenant `shop` with key 10, all uploaded.
    pub async fn new(control: &Plane) -> Self {
        let operator = control.operator();
        let mut fleet = Self::of_earlier(String::new());
        let statements = [
            fleet.root.clone(),
            online(fleet.id, &control.keys).sign(&[&key(1)]),
            fleet.pool.sign(&[&key(1)]),
            fleet.tenant.sign(&[&key(1)]),
        ];
        for statement in statements {
            operator
                .ask("POST", "/v1/statements", statement.to_bytes())
                .await
                .ok();
        }
        fleet.tenant_token = token(&operator, Scope::Tenant(fleet.tenant.id)).await;
        fleet
    }

    /// The fleet of a control plane that already has these statements.
    pub fn of_earlier(tenant_token: String) -> Self {
        let root = Root {
            version: 1,
            keys: vec![key(1).public()],
            threshold: 1,
            issued: 1,
            expires: LATER,
        };
        let root = root.sign(&[&key(1)]);
        let id = FleetId(root.payload_digest().0);
        Self {
            id,
            root,
            pool: pool(id, "main", 1),
            tenant: tenant(id, "shop", 10),
            tenant_token,
        }
    }

    pub fn release(&self, tenant: &Tenant, bundle: &[u8]) -> Release {
        Release {
            fleet: self.id,
            tenant: tenant.id,
            function: name("web"),
            bundle: BundleRef {
                digest: Digest::of(bundle),
                bytes: bundle.len() as u64,
            },
            entry: "main.js".into(),
            hosts: vec!["shop.test".parse().unwrap()],
            perimeter: Perimeter::default(),
            limits: Limits::default(),
            vars: vec![],
            egress: vec![],
            credentials: vec![],
            dynamic_code: false,
            owner: String::new(),
        }
    }

    pub fn secret(&self) -> Secret {
        let place = SecretPlace {
            fleet: self.id,
            tenant: self.tenant.id,
            name: "KEY".parse().unwrap(),
            version: 1,
            pool: self.pool.name.clone(),
            epoch: 1,
            limits: SecretLimits::to_hosts(vec!["api.test".parse().unwrap()]),
        };
        let value = SecretValue::parse(Zeroizing::new(b"hunter2hunter2".to_vec())).unwrap();
        Secret::seal(place, &self.pool, &value, &mut random).unwrap()
    }

    pub fn manifest(&self, version: u64, release: &[u8], secret: Option<&[u8]>) -> Manifest {
        let wanted = Wanted {
            release: Digest::of(release),
            fallbacks: vec![],
            pools: vec![self.pool.name.clone()],
        };
        let secrets = secret.map(|bytes| {
            (
                "KEY".parse().unwrap(),
                [(self.pool.name.clone(), Digest::of(bytes))].into(),
            )
        });
        Manifest {
            fleet: self.id,
            tenant: self.tenant.id,
            tenant_version: 1,
            version,
            functions: [(name("web"), wanted)].into(),
            secrets: secrets.into_iter().collect(),
            freshness: None,
            notes: [].into(),
            issued: 1,
            expires: LATER,
        }
    }

    /// Uploads a bundle, a release and a secret; returns the manifest to submit.
    pub async fn upload(&self, client: &Client, version: u64, bundle: &[u8]) -> Envelope {
        let (release, secret) = (
            self.release(&self.tenant, bundle).to_bytes(),
            self.secret().to_bytes(),
        );
        let id = self.tenant.id;
        client
            .put(&format!("/v1/bundles/{}", Digest::of(bundle)), bundle)
            .await
            .ok();
        for object in [&release, &secret] {
            let path = format!("/v1/tenants/{id}/objects/{}", Digest::of(object));
            client.put(&path, object.clone()).await.ok();
        }
        self.manifest(version, &release, Some(&secret))
            .sign(&[&key(10)])
    }

    /// Uploads a bundle, a release and a secret, and submits the manifest.
    pub async fn deploy(&self, client: &Client, version: u64, bundle: &[u8]) -> Envelope {
        let manifest = self.upload(client, version, bundle).await;
        let path = tenant_path(&self.tenant.id, "manifest");
        client.put(&path, manifest.to_bytes()).await.ok();
        manifest
    }

    /// Makes and registers a join token.
    pub async fn join_token(&self, control: &Plane, node: &str, expires: u64) -> JoinToken {
        let address = (control.quic.clone(), control.keys.quic);
        let token = JoinToken::new(
            self.id,
            address,
            name(node),
            self.pool.name.clone(),
            expires,
            &mut random,
        );
        let record = token.record().unwrap();
        let body = casemate_api::node::NewJoinToken { record };
        control
            .operator()
            .post("/v1/nodes/tokens", &body)
            .await
            .ok();
        token
    }

    pub fn join_request(&self, token: &JoinToken, node: &SigningKey) -> Envelope {
        let request = JoinRequest {
            fleet: self.id,
            node: token.node.clone(),
            pool: token.pool.clone(),
            node_key: node.public(),
            sealing_key: SealingKey::of_seed(&NODE_SEALING_SEED).unwrap(),
        };
        request.sign(&[&token.key().unwrap(), node])
    }

    pub fn grant(&self, node: &SigningKey) -> Grant {
        let to = SealingKey::of_seed(&NODE_SEALING_SEED).unwrap();
        Grant::seal(&self.pool, &POOL_SEED, node.public(), &to, &mut random).unwrap()
    }
}

pub fn pool(fleet: FleetId, pool: &str, epoch: u64) -> Pool {
    Pool {
        fleet,
        name: name(pool),
        epoch,
        public_key: SealingKey::of_seed(&POOL_SEED).unwrap(),
        issued: 1,
        expires: LATER,
    }
}

pub fn tenant(fleet: FleetId, tenant: &str, seed: u8) -> Tenant {
    let hosts = vec!["shop.test".parse().unwrap()];
    Tenant::first(
        fleet,
        name(tenant),
        KeySet::single(key(seed).public()),
        hosts,
        1,
        LATER,
    )
}

pub fn online(fleet: FleetId, keys: &PublicKeys) -> OnlineKey {
    OnlineKey {
        fleet,
        version: 1,
        liveness: keys.liveness,
        quic: keys.quic,
        api: keys.api,
        issued: 1,
        expires: LATER,
    }
}

pub async fn token(operator: &Client, scope: Scope) -> String {
    let new = NewToken {
        scope,
        label: "test".into(),
        expires: None,
    };
    operator
        .post("/v1/tokens", &new)
        .await
        .ok()
        .json::<MadeToken>()
        .token
}

pub fn tenant_path(id: &TenantId, rest: &str) -> String {
    format!("/v1/tenants/{id}/{rest}")
}
