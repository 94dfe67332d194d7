//! What is measured, ready to be asked: the same for times and for instructions.

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

/// Bytes of an envelope's payload: a release with some rules.
const PAYLOAD_BYTES: usize = 2048;
/// Rules of the release that is asked: the call is let through by the last.
const EGRESS_RULES: usize = 16;
/// Hosts in the routing table.
const HOSTS: usize = 100_000;
const FLEET: FleetId = FleetId([1; 32]);
const TENANT: TenantId = TenantId([2; 32]);
const POOL: &str = "main";
const POOL_SEED: [u8; 32] = [3; 32];
const VALUE: &[u8] = b"sk_live_0123456789abcdefghijklmnopqrstuvwxyz";

/// Random bytes of the system.
pub(crate) fn fill(bytes: &mut [u8]) {
    SystemRandom::new()
        .fill(bytes)
        .expect("the system has random bytes");
}

fn parsed<T: std::str::FromStr>(text: &str) -> T {
    text.parse()
        .unwrap_or_else(|_| panic!("{text} is of its kind"))
}

/// A signed envelope in bytes, and whose signature is asked for.
pub(crate) struct Signed {
    bytes: Vec<u8>,
    keys: [PublicKey; 1],
}

impl Signed {
    /// By one key.
    pub(crate) fn new() -> Self {
        let key = SigningKey::from_seed(&[4; 32]).expect("a seed is a key");
        let payload = vec![b'x'; PAYLOAD_BYTES];
        Self {
            bytes: Envelope::sign("application/vnd.casemate", payload, &[&key]).to_bytes(),
            keys: [key.public()],
        }
    }

    /// Opens and verifies it.
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

/// Judges a call with a credential.
pub(crate) fn decide_credential(release: &Release) -> Allowed<'_> {
    let url = "https://pay.example.test/v1/charges?amount=100";
    egress::decide(release, None, Some("payments"), "POST", url).expect("it is declared")
}

/// Judges a call that the last rule lets through.
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
    /// One of the usual length.
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

    /// Seals it once more, as the command line does.
    pub(crate) fn seal(&self) -> Secret {
        Self::sealed(&self.pool, &self.value)
    }

    /// Opens it, as the vault does at a call.
    pub(crate) fn open(&self) -> SecretValue {
        open_secret(&self.secret, &self.keys).expect("it was sealed for this key")
    }
}

/// Bytes of a body that is searched.
const BODY_BYTES: usize = 1024 * 1024;
/// Bytes in which it comes.
const PIECE_BYTES: usize = 16 * 1024;

/// Bodies that are searched, by name: objects of an API, and a page with references.
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

/// Searches a body for a secret that is not in it, as the vault does.
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

/// A table with many hosts.
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

/// Looks a host up that is there.
pub(crate) fn find(table: &Table<()>) -> Option<&Arc<Site<()>>> {
    table.find("host-77777.apps.example.test")
}
