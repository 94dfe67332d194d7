//! Small upstreams over TLS that record what they receive.

#![allow(dead_code, reason = "each test file uses a part of it")]

pub(crate) mod raw;

use std::convert::Infallible;
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine as _;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) target: String,
    pub(crate) body: String,
    headers: Vec<(String, String)>,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Vec<String> {
        self.headers
            .iter()
            .filter(|(n, _)| n == name)
            .map(|(_, value)| value.clone())
            .collect()
    }
}

/// The name of every upstream.
const HOST: &str = "pay.test";

/// An upstream's certificate and key, as PEM.
pub(crate) struct Certificate {
    ca: String,
    leaf: String,
    key: String,
}

impl Certificate {
    /// Makes a new one, with an authority of its own.
    pub(crate) fn new() -> Self {
        let ca_key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = params.self_signed(&ca_key).unwrap();
        let leaf_key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec![HOST.to_owned()])
            .unwrap()
            .signed_by(&leaf_key, &Issuer::new(params, ca_key))
            .unwrap();
        Self {
            ca: ca.pem(),
            leaf: leaf.pem(),
            key: leaf_key.serialize_pem(),
        }
    }

    /// Reads the one that [`Certificate::keep`] has written.
    pub(crate) fn kept(folder: &Path) -> Self {
        let read = |name| std::fs::read_to_string(folder.join(name)).unwrap();
        Self {
            ca: read("upstream-ca.pem"),
            leaf: read("upstream.pem"),
            key: read("upstream.key"),
        }
    }

    /// Writes it to a folder.
    pub(crate) fn keep(&self, folder: &Path) {
        let write = |name, text: &str| std::fs::write(folder.join(name), text).unwrap();
        write("upstream-ca.pem", &self.ca);
        write("upstream.pem", &self.leaf);
        write("upstream.key", &self.key);
    }
}

pub(crate) struct Upstream {
    pub(crate) host: String,
    pub(crate) address: IpAddr,
    pub(crate) port: u16,
    pub(crate) ca_pem: String,
    seen: Arc<Mutex<Vec<Seen>>>,
    /// Bytes of endless answers.
    produced: Arc<AtomicUsize>,
    serving: Option<JoinHandle<()>>,
}

impl Upstream {
    /// Listens, with a certificate of its own.
    async fn listen(alpn: &[&str]) -> (Self, TcpListener, TlsAcceptor) {
        let anywhere = ([127, 0, 0, 1], 0).into();
        Self::listen_with(&Certificate::new(), anywhere, alpn).await
    }

    async fn listen_with(
        certificate: &Certificate,
        address: SocketAddr,
        alpn: &[&str],
    ) -> (Self, TcpListener, TlsAcceptor) {
        let leaf = CertificateDer::from_pem_slice(certificate.leaf.as_bytes()).unwrap();
        let private = PrivateKeyDer::from_pem_slice(certificate.key.as_bytes()).unwrap();
        let mut tls = rustls::ServerConfig::builder_with_provider(Arc::new(
            rustls::crypto::ring::default_provider(),
        ))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf], private)
        .unwrap();
        tls.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        let tls = TlsAcceptor::from(Arc::new(tls));
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let upstream = Self {
            host: HOST.to_owned(),
            address: address.ip(),
            port: address.port(),
            ca_pem: certificate.ca.clone(),
            seen: Arc::default(),
            produced: Arc::default(),
            serving: None,
        };
        (upstream, listener, tls)
    }

    /// Starts an HTTP/2 upstream, or HTTP/1.1 on request.
    pub(crate) async fn start(key: &'static str) -> Self {
        Self::start_with(key, &["h2", "http/1.1"]).await
    }

    pub(crate) async fn start_with(key: &'static str, alpn: &[&str]) -> Self {
        let listening = Self::listen(alpn).await;
        Self::serve(key, listening)
    }

    /// Starts at this address, with this certificate.
    pub(crate) async fn start_at(
        address: SocketAddr,
        certificate: &Certificate,
        key: &'static str,
    ) -> Self {
        let listening = Self::listen_with(certificate, address, &["h2", "http/1.1"]).await;
        Self::serve(key, listening)
    }

    fn serve(key: &'static str, listening: (Self, TcpListener, TlsAcceptor)) -> Self {
        let (mut upstream, listener, tls) = listening;
        let seen = upstream.seen.clone();
        let produced = upstream.produced.clone();
        upstream.serving = Some(tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (tls, seen, produced) = (tls.clone(), seen.clone(), produced.clone());
                tokio::spawn(async move {
                    let Ok(stream) = tls.accept(stream).await else {
                        return;
                    };
                    let service = hyper::service::service_fn(move |request| {
                        answer(request, seen.clone(), produced.clone(), key)
                    });
                    let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    let _ended = server.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        }));
        upstream
    }

    /// Stops listening; the next upstream may use its address.
    pub(crate) async fn stop(self) {
        if let Some(serving) = self.serving {
            serving.abort();
            let _cancelled = serving.await;
        }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("https://{}:{}{path}", self.host, self.port)
    }

    /// Bytes of endless answers that connections have taken.
    pub(crate) fn produced(&self) -> usize {
        self.produced.load(Ordering::SeqCst)
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().clone()
    }
}

type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>;

/// A body without end, and a count of the bytes taken.
fn endless(produced: Arc<AtomicUsize>) -> Body {
    const PIECE: &[u8] = &[b'x'; 16 * 1024];
    let pieces = futures_util::stream::repeat_with(move || {
        produced.fetch_add(PIECE.len(), Ordering::SeqCst);
        Ok(Frame::data(Bytes::from_static(PIECE)))
    });
    StreamBody::new(pieces).boxed_unsync()
}

/// A body in small pieces with a trailer, all of which contain the key.
fn in_pieces(body: &[u8], key: &str) -> Body {
    let mut frames: Vec<_> = body
        .chunks(3)
        .map(|piece| Ok(Frame::data(Bytes::copy_from_slice(piece))))
        .collect();
    let trailer = http::HeaderMap::from_iter([(
        http::HeaderName::from_static("x-key"),
        key.parse().unwrap(),
    )]);
    frames.push(Ok(Frame::trailers(trailer)));
    StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync()
}

/// An answer whose body contains the request's credential, encoded as the query says.
fn mirror(how: &str, key: &str) -> Response<Body> {
    let text = format!("{{\"before\":1,\"key\":\"{key}\",\"after\":2}}");
    let base64 = base64::engine::general_purpose::STANDARD;
    let (encoding, body) = match how {
        "base64" => (None, base64.encode(text).into_bytes()),
        "hex" => (
            None,
            text.bytes()
                .map(|byte| format!("{byte:02X}"))
                .collect::<String>()
                .into(),
        ),
        "percent" => (
            None,
            text.bytes()
                .map(|byte| format!("%{byte:02x}"))
                .collect::<String>()
                .into(),
        ),
        "events" => (None, format!("data: {text}\n\n").repeat(3).into_bytes()),
        "gzip" => {
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            gzip.write_all(text.as_bytes()).unwrap();
            (Some("gzip"), gzip.finish().unwrap())
        }
        "a lie" => (Some("gzip"), text.into_bytes()),
        "unasked" => (Some("zstd"), text.into_bytes()),
        "twice" => (Some("gzip, br"), text.into_bytes()),
        _ => (None, text.into_bytes()),
    };
    let mut response = Response::builder();
    if let Some(encoding) = encoding {
        response = response.header("content-encoding", encoding);
    }
    if how == "an error page" {
        response = response.status(500);
    }
    response.body(in_pieces(&body, key)).unwrap()
}

async fn answer(
    request: Request<Incoming>,
    seen: Arc<Mutex<Vec<Seen>>>,
    produced: Arc<AtomicUsize>,
    key: &str,
) -> Result<Response<Body>, Infallible> {
    let (head, body) = request.into_parts();
    if head.uri.path() == "/v1/deaf" {
        // Neither reads nor answers; `body` stays unread.
        std::future::pending::<()>().await;
    }
    let body = body
        .collect()
        .await
        .map(http_body_util::Collected::to_bytes)
        .unwrap_or_default();
    let headers = head
        .headers
        .iter()
        .map(|(name, value)| {
            (
                name.to_string(),
                value.to_str().unwrap_or_default().to_owned(),
            )
        })
        .collect();
    let target = head
        .uri
        .path_and_query()
        .map(ToString::to_string)
        .unwrap_or_default();
    seen.lock().push(Seen {
        target,
        headers,
        body: String::from_utf8_lossy(&body).into_owned(),
    });
    let response = Response::builder();
    let response = match head.uri.path() {
        "/v1/mirror" => {
            return Ok(mirror(
                &head.uri.query().unwrap_or_default().replace('+', " "),
                key,
            ));
        }
        "/v1/leak" => response
            .status(302)
            .header("x-your-key", key)
            .header(
                "x-in-base64",
                base64::engine::general_purpose::STANDARD.encode(format!("x{key}y")),
            )
            .header("location", format!("https://elsewhere.test/?k={key}"))
            .body(Full::default().boxed_unsync()),
        "/v1/endless" => response.body(endless(produced)),
        "/v1/echo" => response.body(Full::new(body).boxed_unsync()),
        _ => response.body(Full::from("fine").boxed_unsync()),
    };
    Ok(response.unwrap())
}
