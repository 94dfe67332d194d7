//! The operations that both benchmarks measure, by time and by instruction count, with their
//! inputs.

use std::sync::Arc;

use casemate_gateway::route::{Gate, Site, Table};
use casemate_trust::dsse::Envelope;
use casemate_trust::id::{Digest, FleetId, TenantId};
use casemate_trust::key::{PublicKey, SealingKey, SigningKey};
use casemate_trust::release::{
    BundleRef, Credential, EgressRule, Limits, Perimeter, Release, Scheme, Slot,
};
use casemate_trust::secret::{Secret, SecretLimits, SecretPlace, SecretValue};
use casemate_trust::statement::Pool;
use casemate_vault_core::egress::{self, Allowed};
use casemate_vault_core::keys::PoolKeys;
use casemate_vault_core::opening::open_secret;
use casemate_vault_core::scrub::{BodyScrubber, Searcher, Watched};
use casemate_wire::control::FunctionKey;
use casemate_wire::control::gateway;
use ring::rand::{SecureRandom as _, SystemRandom};
use zeroize::Zeroizing;

/// Size of an envelope's payload: a release with some rules.
const PAYLOAD_BYTES: usize = 2048;
/// Egress rules of the measured release; only the last rule permits the call.
const EGRESS_RULES: usize = 16;
/// Hosts in the routing table.
const HOSTS: usize = 100_000;
const FLEET: FleetId = FleetId([1; 32]);
const TENANT: TenantId = TenantId([2; 32]);
const POOL: &str = "main";
const POOL_SEED: [u8; 32] = [3; 32];
const VALUE: &[u8] = b"sk_live_0123456789abcdefghijklmnopqrstuvwxyz";

/// Fills `bytes` with random bytes of the system.
pub(crate) fn fill(bytes: &mut [u8]) {
    SystemRandom::new()
        .fill(bytes)
        .expect("the system has random bytes");
}

fn parsed<T: std::str::FromStr>(text: &str) -> T {
    text.parse()
        .unwrap_or_else(|_| panic!("{text} is of its kind"))
}

/// A signed envelope as bytes, and the key that has to verify its signature.
pub(crate) struct Signed {
    bytes: Vec<u8>,
    keys: [PublicKey; 1],
}

impl Signed {
    /// Signs the envelope with one key.
    pub(crate) fn new() -> Self {
        let key = SigningKey::from_seed(&[4; 32]).expect("a seed is a key");
        let payload = vec![b'x'; PAYLOAD_BYTES];
        Self {
            bytes: Envelope::sign("application/vnd.casemate", payload, &[&key]).to_bytes(),
            keys: [key.public()],
        }
    }

    /// Parses the envelope and verifies its signature.
    pub(crate) fn verify(&self) -> bool {
        let envelope = Envelope::parse(&self.bytes).expect("it was just made");
        envelope.verify(&self.keys, 1)
    }
}

/// A release with rules and a credential.
pub(crate) fn release() -> Release {
    let rule = |number: usize| EgressRule {
        scheme: Scheme::Https,
        host: parsed(&format!("api-{number}.example.test")),
        port: 443,
        methods: vec![],
        paths: vec![parsed("/v1/*")],
        ca: None,
    };
    let credential = Credential {
        binding: parsed("payments"),
        secret: parsed("KEY"),
        host: parsed("pay.example.test"),
        port: 443,
        methods: vec![parsed("POST")],
        paths: vec![parsed("/v1/*")],
        slot: Slot::Bearer,
        auto: false,
        ca: None,
        ranges: false,
    };
    Release {
        fleet: FLEET,
        tenant: TENANT,
        function: parsed("web"),
        bundle: BundleRef {
            digest: Digest([5; 32]),
            bytes: 1,
        },
        entry: "main.js".into(),
        hosts: vec![],
        perimeter: Perimeter::default(),
        limits: Limits::default(),
        vars: vec![],
        egress: (0..EGRESS_RULES).map(rule).collect(),
        credentials: vec![credential],
        dynamic_code: false,
        owner: String::new(),
    }
}

/// Decides a call that uses a credential.
pub(crate) fn decide_credential(release: &Release) -> Allowed<'_> {
    let url = "https://pay.example.test/v1/charges?amount=100";
    egress::decide(release, None, Some("payments"), "POST", url).expect("it is declared")
}

/// Decides a call that the last rule permits.
pub(crate) fn decide_rule(release: &Release) -> Allowed<'_> {
    let url = "https://api-15.example.test/v1/items?page=2";
    egress::decide(release, None, None, "GET", url).expect("it is declared")
}

/// A pool with its key, and a secret sealed to it.
pub(crate) struct Sealed {
    pool: Pool,
    keys: PoolKeys,
    secret: Secret,
    value: SecretValue,
}

impl Sealed {
    /// A secret of typical length.
    pub(crate) fn new() -> Self {
        let pool = Pool {
            fleet: FLEET,
            name: parsed(POOL),
            epoch: 1,
            public_key: SealingKey::of_seed(&POOL_SEED).expect("a seed is a key"),
            issued: 1,
            expires: 2,
        };
        let mut keys = PoolKeys::default();
        keys.insert(parsed(POOL), 1, Zeroizing::new(POOL_SEED));
        let value = SecretValue::parse(Zeroizing::new(VALUE.to_vec())).expect("it is a value");
        let secret = Self::sealed(&pool, &value);
        Self {
            pool,
            keys,
            secret,
            value,
        }
    }

    fn sealed(pool: &Pool, value: &SecretValue) -> Secret {
        let place = SecretPlace {
            fleet: FLEET,
            tenant: TENANT,
            name: parsed("KEY"),
            version: 1,
            pool: parsed(POOL),
            epoch: 1,
            limits: SecretLimits::to_hosts(vec![parsed("pay.example.test")]),
        };
        Secret::seal(place, pool, value, &mut fill).expect("it can be sealed")
    }

    /// Seals the value again, as the command line does.
    pub(crate) fn seal(&self) -> Secret {
        Self::sealed(&self.pool, &self.value)
    }

    /// Opens the secret, as the vault does for each call.
    pub(crate) fn open(&self) -> SecretValue {
        open_secret(&self.secret, &self.keys).expect("it was sealed for this key")
    }
}

/// Size of a body that is scrubbed.
const BODY_BYTES: usize = 1024 * 1024;
/// Size of the pieces in which the body arrives.
const PIECE_BYTES: usize = 16 * 1024;

/// The scrubbed bodies by name: objects of an API, and a page with character references.
pub(crate) fn bodies() -> [(&'static str, Vec<u8>); 2] {
    let object = "{\"id\":\"ch_3f81ab20c9\",\"object\":\"charge\",\"amount\":1099,\"paid\":true,\
                  \"billing\":{\"name\":\"Jenny Rosen\",\"city\":\"Berlin\"},\"status\":\"succeeded\"},";
    let item = "<li class=\"item\">\n  <a href=\"/items/12?x=1&amp;y=2\">Item&nbsp;12 &#8211; nice</a>\n</li>\n";
    [("scrub_json", object), ("scrub_html", item)].map(|(name, text)| {
        let mut body = text.repeat(BODY_BYTES / text.len() + 1).into_bytes();
        body.truncate(BODY_BYTES);
        (name, body)
    })
}

/// Scrubs a body that does not contain the secret, as the vault does; returns the number of bytes
/// that come out.
pub(crate) fn scrub(body: &[u8]) -> usize {
    let watched = Watched {
        value: VALUE,
        slot: &Slot::Bearer,
    };
    let searcher = Searcher::new(&[watched]).expect("the value is long enough");
    let mut scrubber = BodyScrubber::new(searcher);
    let mut push = |piece| scrubber.push(piece).expect("it is searched").len();
    let seen: usize = body.chunks(PIECE_BYTES).map(&mut push).sum();
    seen + scrubber.finish().expect("it is searched").len()
}

/// A routing table with [`HOSTS`] hosts.
pub(crate) fn table() -> Table<()> {
    let hosts: Vec<String> = (0..HOSTS)
        .map(|number| format!("host-{number}.apps.example.test"))
        .collect();
    let perimeter = gateway::Perimeter {
        methods: vec![],
        paths: vec![],
        max_body_bytes: 1,
    };
    let site = Site {
        key: FunctionKey {
            tenant: TENANT.0,
            function: "web".into(),
        },
        function: (),
        gate: Gate::from(perimeter),
    };
    Table::default().with(&hosts, site)
}

/// Looks up a host that is in the table.
pub(crate) fn find(table: &Table<()>) -> Option<&Arc<Site<()>>> {
    table.find("host-77777.apps.example.test")
}
