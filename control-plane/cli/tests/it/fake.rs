//! A control plane in this process with scripted answers, which may be false.

mod nodes;
mod tenants;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{delete, get, post, put};
use casemate_api::audit::{AuditPage, AuditQuery, AuditRecord};
use casemate_api::error::{ErrorBody, code};
use casemate_api::fleet::{FleetView, Outcome, PoolList, PoolView, StatementAnswer};
use casemate_api::node::{
    Admission, HealthView, JoinList, JoinView, NewGrants, NodeList, NodeSummary, NodeView,
};
use casemate_api::tenant::{
    FreshnessAnswer, FunctionStatus, ManifestAnswer, NodeProgress, Refused, StoppedCredential,
    TenantList, TenantStatus, TenantSummary, TenantView,
};
use casemate_api::token::{MadeToken, NewToken};
use casemate_push::StatementId;
use casemate_trust::dsse::Envelope;
use casemate_trust::id::{Digest, FleetId, TenantId};
use casemate_trust::join::Grant;
use casemate_trust::key::SigningKey;
use casemate_trust::name::Name;
use casemate_trust::revocation::Revocations;
use casemate_trust::statement::{Manifest, OnlineKey, Pool, Root, Statement as _, Tenant};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use parking_lot::{Mutex, MutexGuard};
use rustls::pki_types::PrivateKeyDer;
use tokio::net::TcpListener;

use super::holdings::{lacking, own_token, put_anew, readmit, tokens};
use super::records::logs;
pub(crate) use nodes::view;
use nodes::{admit, grant, node, nodes, revoke};
use tenants::{
    freshness, get_object, head_bundle, manifest, put_bundle, put_object, status, tenant, tenants,
};

/// The state of the fake control plane.
#[derive(Default)]
pub(crate) struct Given {
    pub(crate) roots: Vec<Envelope>,
    pub(crate) online: Option<Envelope>,
    pub(crate) revocations: Option<Envelope>,
    /// Paths of all DELETE requests.
    pub(crate) deleted: Vec<String>,
    pub(crate) pools: Vec<Envelope>,
    pub(crate) tenants: BTreeMap<TenantId, Vec<Envelope>>,
    pub(crate) manifests: BTreeMap<TenantId, Vec<Envelope>>,
    pub(crate) freshness: BTreeMap<TenantId, Vec<Envelope>>,
    pub(crate) objects: BTreeMap<Digest, Vec<u8>>,
    pub(crate) bundles: BTreeMap<Digest, Vec<u8>>,
    pub(crate) joins: Vec<JoinView>,
    pub(crate) admitted: Vec<Admission>,
    pub(crate) grants: Vec<Grant>,
    pub(crate) audit: Vec<AuditRecord>,
    /// Bodies and tokens of all requests.
    pub(crate) heard: Vec<u8>,
    /// Show this manifest (by its index) instead of the newest.
    pub(crate) show_manifest: Option<usize>,
    /// Put this text into every text field of the answers.
    pub(crate) evil: Option<&'static str>,
    /// Fail at every statement.
    pub(crate) refuse_statements: bool,
    /// List tenants under each other's names.
    pub(crate) swap_tenants: bool,
    /// Answer every DELETE of a node with this.
    pub(crate) refuse_revoking: Option<(u16, &'static str)>,
    /// Nodes that acknowledge everything at once, and one that refuses.
    pub(crate) nodes: Vec<&'static str>,
    pub(crate) refuses: Option<&'static str>,
    /// One of these nodes, which is not connected and has no manifest.
    pub(crate) away: Option<&'static str>,
    /// Whether the nodes' state is left out of the answers.
    pub(crate) silent: bool,
    /// Credentials that nodes have stopped.
    pub(crate) stopped: Vec<StoppedCredential>,
    /// The health that every node reports.
    pub(crate) health: Option<HealthView>,
    /// How far the fake's clock is ahead, seconds.
    pub(crate) clock_ahead_secs: i64,
    /// List a token of the first tenant.
    pub(crate) tenant_token: bool,
    /// The manifest that the nodes hold, independent of the uploaded one.
    pub(crate) hold: Option<(u64, Digest)>,
}

pub(crate) type Shared = Arc<Mutex<Given>>;

pub(crate) struct Fake {
    pub(crate) address: SocketAddr,
    /// The key of its certificate.
    pub(crate) key: SigningKey,
    given: Shared,
}

/// The PKCS #8 form of an Ed25519 seed (RFC 8410, section 7).
fn pkcs8(seed: &[u8; 32]) -> Vec<u8> {
    let head = [
        0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20,
    ];
    [&head[..], seed].concat()
}

impl Fake {
    pub(crate) async fn start(seed: u8) -> Self {
        let given = Shared::default();
        let seed = [seed; 32];
        let private = PrivateKeyDer::Pkcs8(pkcs8(&seed).into());
        let pair = rcgen::KeyPair::from_der_and_sign_algo(&private, &rcgen::PKCS_ED25519).unwrap();
        let params = rcgen::CertificateParams::new(vec!["control.test".to_owned()]).unwrap();
        let certificate = params.self_signed(&pair).unwrap().der().clone();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], private)
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = router(Arc::clone(&given));
        tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let (acceptor, router) = (acceptor.clone(), router.clone());
                tokio::spawn(async move {
                    let Ok(tls) = acceptor.accept(tcp).await else {
                        return;
                    };
                    let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    let service = TowerToHyperService::new(router);
                    let _ = server.serve_connection(TokioIo::new(tls), service).await;
                });
            }
        });
        let key = SigningKey::from_seed(&seed).unwrap();
        Self {
            address,
            key,
            given,
        }
    }

    pub(crate) fn given(&self) -> MutexGuard<'_, Given> {
        self.given.lock()
    }

    /// A node's request to join, as its vault signed it.
    pub(crate) fn ask(&self, envelope: Envelope) {
        let request = casemate_trust::join::JoinRequest::read(&envelope).unwrap();
        self.given().joins.push(JoinView {
            request: envelope.payload_digest(),
            node: request.node,
            pool: request.pool,
            node_key: request.node_key,
            envelope,
            first_seen: 1,
        });
    }
}

fn router(given: Shared) -> Router {
    Router::new()
        .route("/v1/fleet", get(fleet))
        .route("/v1/statements", post(statement))
        .route("/v1/pools", get(pools))
        .route("/v1/tenants", get(tenants))
        .route("/v1/tenants/{id}", get(tenant))
        .route(
            "/v1/tenants/{id}/objects/{digest}",
            put(put_object).get(get_object),
        )
        .route("/v1/tenants/{id}/manifest", put(manifest))
        .route("/v1/tenants/{id}/freshness", put(freshness))
        .route("/v1/tenants/{id}/status", get(status))
        .route("/v1/bundles/{digest}", put(put_bundle).head(head_bundle))
        .route("/v1/tenants/{id}/logs", get(logs))
        .route("/v1/audit", get(audit))
        .route("/v1/nodes", get(nodes).post(readmit))
        .route("/v1/tokens", post(token).get(tokens))
        .route("/v1/tokens/{id}", delete(revoke_token))
        .route("/v1/token", get(own_token))
        .route(
            "/v1/images",
            get(async || json(&casemate_api::image::ImageList { images: Vec::new() })),
        )
        .route(
            "/v1/nodes/tokens",
            post(async |State(given): State<Shared>, body: Bytes| {
                given.lock().heard.extend(&body);
            }),
        )
        .route(
            "/v1/nodes/joins",
            get(async |State(given): State<Shared>| {
                let joins = given.lock().joins.clone();
                json(&JoinList { joins })
            }),
        )
        .route("/v1/nodes/admit", post(admit))
        .route("/v1/nodes/{name}", get(node).delete(revoke))
        .route("/v1/nodes/{name}/grants", post(grant))
        .with_state(given)
}

pub(crate) fn json(value: &impl serde::Serialize) -> Response {
    serde_json::to_vec(value).unwrap().into_response()
}

fn no(status: StatusCode, code: &str) -> Response {
    (
        status,
        serde_json::to_vec(&ErrorBody::new(code, "no")).unwrap(),
    )
        .into_response()
}

async fn fleet(State(given): State<Shared>, headers: HeaderMap) -> Response {
    let mut given = given.lock();
    // A client that does not trust the server yet must not send a token.
    if let Some(token) = headers.get("authorization") {
        given.heard.extend(token.as_bytes());
    }
    let mut answer = json(&FleetView {
        fleet: given
            .roots
            .first()
            .map(|root| FleetId(root.payload_digest().0)),
        roots: given.roots.clone(),
        online_key: given.online.clone(),
        revocations: given.revocations.clone(),
        quic_address: "control.test:7000".into(),
        version: "fake".into(),
    });
    let clock = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(given.clock_ahead_secs);
    let printer = jiff::fmt::rfc2822::DateTimePrinter::new();
    let date = printer.timestamp_to_rfc9110_string(&clock).unwrap();
    answer.headers_mut().insert("date", date.parse().unwrap());
    answer
}

async fn statement(State(given): State<Shared>, body: Bytes) -> Response {
    let envelope = Envelope::parse(&body).unwrap();
    let mut given = given.lock();
    given.heard.extend(&body);
    if given.refuse_statements {
        return no(StatusCode::INTERNAL_SERVER_ERROR, code::INTERNAL);
    }
    match envelope.payload_type() {
        Root::TYPE if given.roots.contains(&envelope) => {}
        Root::TYPE => given.roots.push(envelope),
        OnlineKey::TYPE => given.online = Some(envelope),
        Revocations::TYPE => given.revocations = Some(envelope),
        Pool::TYPE => put_anew(&mut given.pools, envelope),
        Tenant::TYPE => {
            let tenant = Tenant::read(&envelope).unwrap();
            put_anew(given.tenants.entry(tenant.id).or_default(), envelope);
        }
        _ => return no(StatusCode::BAD_REQUEST, code::BAD_REQUEST),
    }
    json(&StatementAnswer {
        accepted: Outcome::New,
        revision: 1,
    })
}

async fn pools(State(given): State<Shared>) -> Response {
    let given = given.lock();
    let mut views: BTreeMap<Name, PoolView> = BTreeMap::new();
    for envelope in &given.pools {
        let pool = Pool::read(envelope).unwrap();
        let view = views.entry(pool.name.clone()).or_insert_with(|| PoolView {
            name: pool.name.clone(),
            epoch: 0,
            expires: 0,
            nodes: 0,
            statements: Vec::new(),
        });
        (view.epoch, view.expires) = (pool.epoch, pool.expires);
        view.statements.push(envelope.clone());
    }
    json(&PoolList {
        pools: views.into_values().collect(),
    })
}

fn refusal(what: &str, code: &str, message: &str) -> Refused {
    Refused {
        what: what.into(),
        code: code.into(),
        message: message.into(),
        at: 1,
    }
}

async fn audit(Query(query): Query<AuditQuery>, State(given): State<Shared>) -> Response {
    let given = given.lock();
    let rest = given.audit.iter().filter(|record| record.seq > query.since);
    let records = rest.take(2).cloned().collect();
    let newest = given.audit.len() as u64;
    json(&AuditPage {
        records,
        newest,
        verified: true,
    })
}

async fn token(State(given): State<Shared>, body: Bytes) -> Response {
    let new: NewToken = serde_json::from_slice(&body).unwrap();
    json(&MadeToken {
        id: given.lock().evil.unwrap_or("t1").into(),
        token: format!("casemate_{}", new.label.len()),
    })
}

async fn revoke_token(State(given): State<Shared>, Path(id): Path<String>) -> StatusCode {
    given.lock().deleted.push(format!("token {id}"));
    StatusCode::OK
}
