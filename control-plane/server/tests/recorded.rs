//! Requests that earlier command lines have sent are sent again: this control plane answers each
//! like the earlier one did, with at least the same fields, and today's command line reads the
//! earlier answers.
// A panic is how a test fails.
#![allow(clippy::unwrap_used)]

#[path = "../../../tests/fixtures/archive.rs"]
mod archive;
mod support;

use std::path::PathBuf;

use casemate_api::endpoint::{Body, ENDPOINTS, Endpoint};
use casemate_api::error::ErrorBody;
use casemate_api::node::{NewGrants, NewJoinToken, Readmission};
use casemate_api::token::{NewToken, Scope};
use casemate_api::{audit, fleet, image, node, tenant, token};
use casemate_trust::id::Digest;
use casemate_trust::statement::Statement as _;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use support::client::Answer;
use support::fleet::{LATER, key, tenant_path};
use support::{Control, Fleet};

/// The state that the requests are sent to, and their version of the API.
const STATE: &str = "control-1";
const VERSION: &str = "v1";

/// One request and its answer.
#[derive(Serialize, Deserialize)]
struct Exchange {
    endpoint: String,
    /// `operator`, `tenant`, or none.
    who: String,
    method: String,
    path: String,
    body: String,
    status: u16,
    /// Where it is JSON.
    answer: Value,
}

struct Recorder {
    control: Control,
    fleet: Fleet,
    exchanges: Vec<Exchange>,
}

async fn ask(control: &Control, fleet: &Fleet, exchange: &Exchange) -> Answer {
    let client = match exchange.who.as_str() {
        "operator" => control.operator(),
        "tenant" => control.client(&fleet.tenant_token),
        _ => control.client(""),
    };
    let body = exchange.body.clone().into_bytes();
    client.ask(&exchange.method, &exchange.path, body).await
}

impl Recorder {
    async fn say(&mut self, endpoint: &str, who: &str, path: &str, body: impl Into<Vec<u8>>) {
        let found = ENDPOINTS
            .iter()
            .find(|found| found.id.as_str() == endpoint)
            .unwrap();
        let mut exchange = Exchange {
            endpoint: endpoint.to_owned(),
            who: who.to_owned(),
            method: found.method.as_str().to_owned(),
            path: path.to_owned(),
            body: String::from_utf8(body.into()).unwrap(),
            status: 0,
            answer: Value::Null,
        };
        let answer = ask(&self.control, &self.fleet, &exchange).await;
        exchange.status = answer.status;
        exchange.answer = serde_json::from_slice(&answer.body).unwrap_or_default();
        if endpoint == "openapi" {
            exchange.answer = Value::Null;
        }
        self.exchanges.push(exchange);
    }

    /// The requests of operators and tenants.
    async fn whole(mut self) -> Vec<Exchange> {
        let (operator, tenant, nobody) = ("operator", "tenant", "");
        self.say("health", nobody, "/healthz", "").await;
        self.say("openapi", nobody, "/v1/openapi.json", "").await;
        self.say("fleet", nobody, "/v1/fleet", "").await;
        let bank = support::fleet::tenant(self.fleet.id, "bank", 11);
        let bank = bank.sign(&[&key(1)]).to_bytes();
        self.say("post_statement", operator, "/v1/statements", bank)
            .await;
        self.say("list_pools", tenant, "/v1/pools", "").await;
        self.say("list_tenants", operator, "/v1/tenants", "").await;
        let id = self.fleet.tenant.id;
        let own = format!("/v1/tenants/{id}");
        self.say("get_tenant", tenant, &own, "").await;
        self.deploy().await;
        let status = tenant_path(&id, "status");
        self.say("tenant_status", tenant, &status, "").await;
        let logs = tenant_path(&id, "logs?level=info");
        self.say("tenant_logs", tenant, &logs, "").await;
        self.images().await;
        self.tokens().await;
        self.nodes().await;
        self.say("audit", operator, "/v1/audit?since=2", "").await;
        self.exchanges
    }

    async fn deploy(&mut self) {
        let (id, bundle) = (self.fleet.tenant.id, b"bundle three");
        let release = self.fleet.release(&self.fleet.tenant, bundle).to_bytes();
        let secret = self.fleet.secret().to_bytes();
        let path = format!("/v1/bundles/{}", Digest::of(bundle));
        self.say("put_bundle", "tenant", &path, bundle.to_vec())
            .await;
        self.say("head_bundle", "tenant", &path, "").await;
        for object in [&release, &secret] {
            let path = tenant_path(&id, &format!("objects/{}", Digest::of(object)));
            self.say("put_object", "tenant", &path, object.clone())
                .await;
            self.say("get_object", "tenant", &path, "").await;
        }
        let manifest = self.fleet.manifest(3, &release, Some(&secret));
        let manifest = manifest.sign(&[&key(10)]).to_bytes();
        let path = tenant_path(&id, "manifest");
        self.say("put_manifest", "tenant", &path, manifest.clone())
            .await;
        let lower = self.fleet.manifest(2, &release, None).sign(&[&key(10)]);
        self.say("put_manifest", "tenant", &path, lower.to_bytes())
            .await;
        let path = tenant_path(&id, "freshness");
        self.say("put_freshness", "tenant", &path, manifest).await;
    }

    async fn images(&mut self) {
        let content = b"an image";
        let path = format!("/v1/images/{}", Digest::of(content));
        let upload = format!("{path}?offset=0&bytes={}", content.len());
        self.say("put_image", "operator", &upload, content.to_vec())
            .await;
        self.say("get_image", "operator", &path, "").await;
        self.say("list_images", "operator", "/v1/images", "").await;
    }

    async fn tokens(&mut self) {
        let new = NewToken {
            scope: Scope::ReadOnly,
            label: "ci".into(),
            expires: Some(LATER),
        };
        let new = serde_json::to_vec(&new).unwrap();
        self.say("make_token", "operator", "/v1/tokens", new).await;
        self.say("list_tokens", "operator", "/v1/tokens", "").await;
        self.say("own_token", "tenant", "/v1/token", "").await;
        self.say(
            "delete_token",
            "operator",
            "/v1/tokens/0000000000000000",
            "",
        )
        .await;
    }

    async fn nodes(&mut self) {
        let operator = "operator";
        let token = casemate_trust::join::JoinToken::new(
            self.fleet.id,
            ("control.test:1".into(), self.control.keys.quic),
            support::fleet::name("edge-3"),
            self.fleet.pool.name.clone(),
            LATER,
            &mut support::fleet::random,
        );
        let new = NewJoinToken {
            record: token.record().unwrap(),
        };
        let path = "/v1/nodes/tokens";
        self.say("register_join_token", operator, path, json(&new))
            .await;
        self.say("list_joins", operator, "/v1/nodes/joins", "")
            .await;
        // The request waits in the fixture.
        let admission = support::node::admission(&self.control, &self.fleet, &key(22)).await;
        let path = "/v1/nodes/admit";
        self.say("admit_node", operator, path, json(&admission))
            .await;
        self.say("list_nodes", operator, "/v1/nodes", "").await;
        self.say("get_node", operator, "/v1/nodes/edge-2", "").await;
        let grants = NewGrants {
            grants: vec![self.fleet.grant(&key(22))],
        };
        let path = "/v1/nodes/edge-2/grants";
        self.say("grant_node", operator, path, json(&grants)).await;
        let again = Readmission {
            join: self.fleet.join_request(&token, &key(22)),
            grants: grants.grants,
        };
        self.say("readmit_node", operator, "/v1/nodes", json(&again))
            .await;
        self.say("revoke_node", operator, "/v1/nodes/edge-2", "")
            .await;
    }
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap()
}

async fn control() -> (Control, Fleet) {
    let folder = archive::unpack(STATE);
    let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
    let fleet = Fleet::of_earlier(read("tenant.token"));
    let operator = read("state/operator.token");
    std::fs::write(folder.path().join("operator.token"), operator).unwrap();
    (Control::of_earlier(folder).await, fleet)
}

fn file() -> PathBuf {
    archive::folder().join(format!("../api/{VERSION}.json"))
}

async fn recording() -> Vec<Exchange> {
    if archive::is_writing() && !file().exists() {
        let (control, fleet) = control().await;
        let recorder = Recorder {
            control,
            fleet,
            exchanges: Vec::new(),
        };
        let recorded = recorder.whole().await;
        std::fs::create_dir_all(file().parent().unwrap()).unwrap();
        std::fs::write(file(), serde_json::to_vec_pretty(&recorded).unwrap()).unwrap();
    }
    serde_json::from_slice(&std::fs::read(file()).unwrap()).unwrap()
}

/// The field of an answer that is missing today, or has another type.
fn lacks(then: &Value, now: &Value, at: &str) -> Option<String> {
    match (then, now) {
        // A field that was null may have a value now.
        (Value::Null, _) => None,
        (Value::Object(then), Value::Object(now)) => then.iter().find_map(|(name, value)| {
            let at = format!("{at}/{name}");
            match now.get(name) {
                Some(now) => lacks(value, now, &at),
                None if value.is_null() => None,
                None => Some(at),
            }
        }),
        (Value::Array(then), Value::Array(now)) => match (then.first(), now.first()) {
            (Some(then), Some(now)) => lacks(then, now, &format!("{at}/0")),
            (Some(_), None) => Some(format!("{at}/0")),
            (None, _) => None,
        },
        _ => {
            let is_same = std::mem::discriminant(then) == std::mem::discriminant(now);
            (!is_same).then(|| at.to_owned())
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_of_earlier_command_lines_get_the_same_answers() {
    let recording = recording().await;
    let (control, fleet) = control().await;
    for exchange in &recording {
        let Exchange {
            endpoint,
            path,
            status,
            ..
        } = exchange;
        let answer = ask(&control, &fleet, exchange).await;
        let text = String::from_utf8_lossy(&answer.body);
        assert_eq!(answer.status, *status, "{endpoint} {path}: {text}");
        let now = serde_json::from_slice(&answer.body).unwrap_or_default();
        if let Some(at) = lacks(&exchange.answer, &now, "") {
            panic!(
                "the answer to {endpoint} has lost {at}, which command lines of {VERSION} read: {text}"
            );
        }
        if *status >= 400 {
            let code = |answer: &Value| answer["error"]["code"].clone();
            assert_eq!(code(&now), code(&exchange.answer), "{endpoint} {path}");
        }
    }
    let is_recorded = |endpoint: &&Endpoint| {
        let mut recorded = recording.iter();
        recorded.any(|exchange| exchange.endpoint == endpoint.id.as_str())
    };
    let missing: Vec<_> = ENDPOINTS
        .iter()
        .filter(|endpoint| !is_recorded(endpoint))
        .collect();
    assert!(missing.is_empty(), "record these too: {missing:?}");
}

fn reads<T: DeserializeOwned>(answer: &Value) -> Result<(), serde_json::Error> {
    serde_json::from_value::<T>(answer.clone()).map(drop)
}

/// Reads an answer as the type that the table of endpoints names.
fn read(name: &str, answer: &Value) -> Result<(), serde_json::Error> {
    match name {
        "FleetView" => reads::<fleet::FleetView>(answer),
        "StatementAnswer" => reads::<fleet::StatementAnswer>(answer),
        "PoolList" => reads::<fleet::PoolList>(answer),
        "TenantList" => reads::<tenant::TenantList>(answer),
        "TenantView" => reads::<tenant::TenantView>(answer),
        "ManifestAnswer" => reads::<tenant::ManifestAnswer>(answer),
        "FreshnessAnswer" => reads::<tenant::FreshnessAnswer>(answer),
        "TenantStatus" => reads::<tenant::TenantStatus>(answer),
        "ImageList" => reads::<image::ImageList>(answer),
        "ImageUpload" => reads::<image::ImageUpload>(answer),
        "MadeToken" => reads::<token::MadeToken>(answer),
        "TokenList" => reads::<token::TokenList>(answer),
        "TokenView" => reads::<token::TokenView>(answer),
        "JoinList" => reads::<node::JoinList>(answer),
        "NodeView" => reads::<node::NodeView>(answer),
        "NodeList" => reads::<node::NodeList>(answer),
        "AuditPage" => reads::<audit::AuditPage>(answer),
        "object" => Ok(()),
        name => panic!("{name} is new: read it here too"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_of_earlier_control_planes_are_read() {
    for exchange in recording().await {
        let found = ENDPOINTS
            .iter()
            .find(|found| found.id.as_str() == exchange.endpoint);
        let endpoint = found.unwrap_or_else(|| panic!("{} is gone", exchange.endpoint));
        let done = match endpoint.answer {
            _ if exchange.status >= 400 && exchange.method != "HEAD" => {
                reads::<ErrorBody>(&exchange.answer)
            }
            Body::Json(name) => read(name, &exchange.answer),
            Body::Empty | Body::Envelope | Body::Bytes | Body::Lines(_) => Ok(()),
        };
        done.unwrap_or_else(|error| panic!("{}: {error}", exchange.endpoint));
    }
}
