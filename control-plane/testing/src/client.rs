//! An HTTPS client that trusts one key and nothing else.

use std::sync::Arc;

use casemate_trust::key::PublicKey;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, Error, SignatureScheme};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// A client of the API that shows one token: made by a test, one connection for each request.
pub struct Client {
    address: String,
    key: PublicKey,
    token: String,
}

/// An answer, read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn json<T: DeserializeOwned>(&self) -> T {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&self.body)))
    }

    /// The error's code, after a check of the status.
    #[track_caller]
    pub fn refused(&self, status: u16) -> String {
        let text = String::from_utf8_lossy(&self.body);
        assert_eq!(self.status, status, "{text}");
        let error: casemate_api::error::ErrorBody = self.json();
        assert!(!error.error.message.is_empty());
        error.error.code
    }

    /// The error's details.
    pub fn details(&self) -> Value {
        self.json::<casemate_api::error::ErrorBody>().error.details
    }

    #[track_caller]
    pub fn ok(self) -> Self {
        assert!(
            (200..300).contains(&self.status),
            "{}: {}",
            self.status,
            String::from_utf8_lossy(&self.body)
        );
        self
    }
}

impl Client {
    pub fn new(address: &str, key: PublicKey, token: &str) -> Self {
        let (address, token) = (address.to_owned(), token.to_owned());
        Self {
            address,
            key,
            token,
        }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, Vec::new()).await
    }

    pub async fn put(&self, path: &str, body: impl Into<Vec<u8>>) -> Answer {
        self.ask("PUT", path, body.into()).await
    }

    pub async fn post<T: Serialize>(&self, path: &str, body: &T) -> Answer {
        self.ask("POST", path, serde_json::to_vec(body).unwrap())
            .await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.ask("DELETE", path, Vec::new()).await
    }

    pub async fn ask(&self, method: &str, path: &str, body: Vec<u8>) -> Answer {
        let response = self.open(method, path, body).await;
        let status = response.status().as_u16();
        let body = response
            .into_body()
            .collect()
            .await
            .unwrap()
            .to_bytes()
            .to_vec();
        Answer { status, body }
    }

    /// The answer, whose body may continue.
    pub async fn open(&self, method: &str, path: &str, body: Vec<u8>) -> Response<Incoming> {
        let stream = tokio::net::TcpStream::connect(&self.address).await.unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config(self.key)));
        let name = ServerName::try_from("casemate-control").unwrap();
        let stream = connector.connect(name, stream).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .unwrap();
        tokio::spawn(connection);
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "casemate-control");
        if !self.token.is_empty() {
            request = request.header("authorization", format!("Bearer {}", self.token));
        }
        let request = request.body(Full::new(Bytes::from(body))).unwrap();
        sender.send_request(request).await.unwrap()
    }
}

pub fn config(key: PublicKey) -> rustls::ClientConfig {
    let builder = rustls::ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap();
    let verifier = Arc::new(Pinned(key, ring::default_provider()));
    builder
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth()
}

#[derive(Debug)]
struct Pinned(PublicKey, CryptoProvider);

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let has_key = end_entity
            .as_ref()
            .windows(32)
            .any(|window| window == self.0.as_bytes());
        has_key
            .then(ServerCertVerified::assertion)
            .ok_or_else(|| Error::General("another key".into()))
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(
            message,
            cert,
            dss,
            &self.1.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}
