//! An upstream over TLS that answers 401 without the right key, and records the requests that it
//! receives.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Either, Full};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, LOCATION, ORIGIN};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// Largest request body that the upstream reads, bytes: tests send up to 10 MB.
const MAX_BODY_BYTES: usize = 32 << 20;

/// One request as the upstream received it.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Method.
    pub method: String,
    /// Path and query, byte for byte.
    pub target: String,
    /// Header names and values in order.
    pub headers: Vec<(String, String)>,
    /// Body.
    pub body: Bytes,
}

impl Seen {
    /// First value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, value)| value.as_str())
    }
}

/// A running upstream, which ends with the runtime.
#[derive(Debug)]
pub struct Upstream {
    /// The address on which the upstream listens.
    pub address: SocketAddr,
    /// The upstream's certificate authority, PEM.
    pub ca_pem: String,
    seen: Arc<Seens>,
}

/// The recorded requests, unless the upstream keeps none.
#[derive(Debug, Default)]
struct Seens {
    forgets: bool,
    list: Mutex<Vec<Seen>>,
    /// The stored text of `/note`.
    note: Mutex<Bytes>,
}

impl Upstream {
    /// Starts an upstream, with a new certificate authority.
    ///
    /// Listens on a loopback port under a certificate for `host` (and `localhost`, `127.0.0.1`).
    /// Accepts `Bearer KEY` only.
    ///
    /// - `/echo` answers with the request's headers and body, in clear, `/stream` with the body as
    ///   it arrives, in its content encoding;
    /// - `/note` stores the body of a POST, answers with it and with the `Origin`, and returns it
    ///   to a GET with or without the key;
    /// - `/redirect?to=URL` answers 302 to that URL, `/leak` puts the key into a header and a
    ///   redirect's location;
    /// - anything else answers JSON that names method and path.
    pub async fn start(host: &str, key: &str) -> Result<Self> {
        Self::start_with(host, key, Seens::default()).await
    }

    /// Like [`Self::start`], without a record of requests: for millions of them.
    pub async fn start_forgetful(host: &str, key: &str) -> Result<Self> {
        let seen = Seens {
            forgets: true,
            ..Seens::default()
        };
        Self::start_with(host, key, seen).await
    }

    async fn start_with(host: &str, key: &str, seen: Seens) -> Result<Self> {
        let ca_key = KeyPair::generate()?;
        let mut ca_params = CertificateParams::new(Vec::<String>::new())?;
        ca_params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = ca_params.self_signed(&ca_key)?;
        let issuer = Issuer::new(ca_params, ca_key);
        let leaf_key = KeyPair::generate()?;
        let names = [host, "localhost", "127.0.0.1"].map(ToOwned::to_owned);
        let leaf = CertificateParams::new(names)?.signed_by(&leaf_key, &issuer)?;

        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(leaf_key.serialize_der()));
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], private)?;
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];

        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .context("binding the upstream")?;
        let upstream = Self {
            address: listener.local_addr()?,
            ca_pem: ca.pem(),
            seen: Arc::new(seen),
        };
        let (seen, key) = (upstream.seen.clone(), Arc::<str>::from(key));
        tokio::spawn(accept(
            listener,
            TlsAcceptor::from(Arc::new(tls)),
            seen,
            key,
        ));
        Ok(upstream)
    }

    /// The recorded requests, oldest first.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.list.lock().clone()
    }
}

async fn accept(listener: TcpListener, tls: TlsAcceptor, seen: Arc<Seens>, key: Arc<str>) {
    while let Ok((stream, _)) = listener.accept().await {
        let (tls, seen, key) = (tls.clone(), seen.clone(), key.clone());
        tokio::spawn(async move {
            // An answer in several segments must not wait for the caller's delayed acknowledgement.
            let _may_wait = stream.set_nodelay(true);
            let Ok(stream) = tls.accept(stream).await else {
                return;
            };
            let service = hyper::service::service_fn(|request| {
                let (seen, key) = (seen.clone(), key.clone());
                async move { Ok::<_, Infallible>(answer(request, &seen, &key).await) }
            });
            let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            // A client that closes its connection early is no fault of the upstream.
            let _ended = server.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

type Body = Either<Full<Bytes>, Incoming>;

async fn answer(request: Request<Incoming>, seen: &Seens, key: &str) -> Response<Body> {
    let (head, body) = request.into_parts();
    let authorised = head
        .headers
        .get(AUTHORIZATION)
        .is_some_and(|value| value.as_bytes() == format!("Bearer {key}").as_bytes());
    if authorised && head.uri.path() == "/v1/stream" {
        let mut response = Response::new(Either::Right(body));
        if let Some(encoding) = head.headers.get(CONTENT_ENCODING) {
            let encoding = encoding.clone();
            response.headers_mut().insert(CONTENT_ENCODING, encoding);
        }
        return response;
    }
    let body = http_body_util::Limited::new(body, MAX_BODY_BYTES)
        .collect()
        .await;
    let body = body
        .map(http_body_util::Collected::to_bytes)
        .unwrap_or_default();
    let record = record(&head, body.clone());
    if !seen.forgets {
        seen.list.lock().push(record.clone());
    }
    if head.uri.path() == "/v1/note" && head.method == hyper::Method::GET {
        let note = seen.note.lock().clone();
        return respond(StatusCode::OK, "text/plain", note);
    }
    if !authorised {
        let body = r#"{"error":"no valid key"}"#;
        return respond(StatusCode::UNAUTHORIZED, "application/json", body.into());
    }
    match head.uri.path() {
        "/echo" | "/v1/echo" => echo(&record),
        "/v1/note" => {
            seen.note.lock().clone_from(&body);
            let mut response = respond(StatusCode::CREATED, "text/plain", body);
            if let Some(origin) = head.headers.get(ORIGIN) {
                response.headers_mut().insert("x-origin", origin.clone());
            }
            response
        }
        "/redirect" => redirect(head.uri.query()),
        "/leak" | "/v1/leak" => leak(key),
        path => {
            let method = head.method;
            let body = format!(r#"{{"ok":true,"method":"{method}","path":"{path}"}}"#);
            respond(StatusCode::OK, "application/json", body.into())
        }
    }
}

fn record(head: &hyper::http::request::Parts, body: Bytes) -> Seen {
    let text =
        |value: &hyper::header::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let headers = head.headers.iter();
    Seen {
        method: head.method.to_string(),
        target: head
            .uri
            .path_and_query()
            .map(ToString::to_string)
            .unwrap_or_default(),
        headers: headers
            .map(|(name, value)| (name.to_string(), text(value)))
            .collect(),
        body,
    }
}

/// The request's headers and body, as text.
fn echo(record: &Seen) -> Response<Body> {
    let headers = record.headers.iter();
    let mut text: String = headers
        .map(|(name, value)| format!("{name}: {value}\n"))
        .collect();
    text.push_str(&String::from_utf8_lossy(&record.body));
    respond(StatusCode::OK, "text/plain", text.into())
}

/// A redirection to the address in the query.
fn redirect(query: Option<&str>) -> Response<Body> {
    let to = query
        .and_then(|query| query.strip_prefix("to="))
        .unwrap_or("/");
    let mut response = respond(StatusCode::FOUND, "text/plain", Bytes::new());
    if let Ok(to) = to.parse() {
        response.headers_mut().insert(LOCATION, to);
    }
    response
}

/// The credential in two headers of the response, as a careless or hostile service returns it.
fn leak(key: &str) -> Response<Body> {
    let mut response = respond(StatusCode::FOUND, "text/plain", Bytes::new());
    if let (Ok(key_header), Ok(location)) = (
        key.parse(),
        format!("https://elsewhere.test/?k={key}").parse(),
    ) {
        response.headers_mut().insert("x-your-key", key_header);
        response.headers_mut().insert(LOCATION, location);
    }
    response
}

fn respond(status: StatusCode, kind: &'static str, body: Bytes) -> Response<Body> {
    let mut response = Response::new(Either::Left(Full::new(body)));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    response
}
