//! The control plane's API over HTTPS, with the key of the other end pinned.

mod refusal;
#[cfg(test)]
mod tests;
mod tls;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use casemate_trust::key::PublicKey;
use http::{Method, Request, Response, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use zeroize::Zeroizing;

use crate::clock::Clocks;
use crate::error::{Code, Error};
use crate::machine::now;
use refusal::{may_be_unknown, refused};
use tls::PinnedKey;

/// Time limit for a connection with its handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Time limit for the head of an answer: enough to upload a bundle of 10 MiB at 50 KiB a second.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(200);
/// Time limit for the body of an answer.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);
/// Largest answer that is read, bytes: a list of thousands of nodes, or a manifest with all its
/// statements.
const MAX_ANSWER_BYTES: usize = 32 * 1024 * 1024;
/// Longest excerpt of an answer that is not an error of the API, in characters, in an error message
/// of this program.
const MAX_SHOWN_CHARS: usize = 200;

/// Where a control plane is, `https://HOST:PORT`: parsed from what was typed or kept, and named in
/// errors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    host: String,
    port: u16,
}

impl Address {
    /// Parses a URL; its path, query and fragment are ignored.
    ///
    /// # Errors
    /// The text is not an https URL with a host.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let wrong = || {
            Error::new(
                Code::Usage,
                "expected the control plane's address as https://HOST:PORT#FINGERPRINT",
                "get it from the operator, who sees it with `casemate fingerprint`",
            )
            .at(text)
        };
        let url = url::Url::parse(text).map_err(|error| wrong().source(error))?;
        let host = url.host_str().map(|host| host.trim_matches(['[', ']']));
        match (url.scheme(), host, url.port_or_known_default()) {
            ("https", Some(host), Some(port)) if url.username().is_empty() => Ok(Self {
                host: host.to_owned(),
                port,
            }),
            _ => Err(wrong()),
        }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.host.contains(':') {
            write!(to, "https://[{}]:{}", self.host, self.port)
        } else {
            write!(to, "https://{}:{}", self.host, self.port)
        }
    }
}

/// One connection to the control plane; it is opened again after it was closed.
pub struct Api {
    address: Address,
    pin: Option<PublicKey>,
    token: Option<Zeroizing<String>>,
    connection: Option<SendRequest<Full<Bytes>>>,
    clocks: Option<Clocks>,
    /// The control plane's program and version, as its answers name them.
    software: Option<String>,
}

impl std::fmt::Debug for Api {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(to, "Api({})", self.address)
    }
}

impl Api {
    /// Connect to the server at an address, and learn its key. Nothing secret is sent before
    /// [`Api::trust`].
    ///
    /// # Errors
    /// No server answers, or not with TLS 1.3 and an Ed25519 key.
    pub async fn meet(address: Address) -> Result<(Self, PublicKey), Error> {
        let mut api = Self {
            address,
            pin: None,
            token: None,
            connection: None,
            clocks: None,
            software: None,
        };
        let key = api.connect().await?;
        Ok((api, key))
    }

    /// Accept only this key from now on, and send the token with each request.
    pub fn trust(&mut self, key: PublicKey, token: Option<Zeroizing<String>>) {
        self.pin = Some(key);
        self.token = token;
    }

    /// Both clocks at the time of the last answer.
    pub fn clocks(&self) -> Option<Clocks> {
        self.clocks
    }

    /// The control plane's address.
    pub fn address(&self) -> &Address {
        &self.address
    }

    async fn connect(&mut self) -> Result<PublicKey, Error> {
        let address = self.address.clone();
        let away = |error: Box<dyn std::error::Error + Send + Sync>| {
            Error::new(
                Code::Unreachable,
                "the control plane does not answer",
                "check that casemate-control runs there and that the network lets you through; \
                 functions go on running without it, and credentials until the node's lease, or \
                 the freshness that a tenant demands, runs out",
            )
            .at(&address)
            .source(error)
        };
        let target = (address.host.as_str(), address.port);
        let tcp = in_time(CONNECT_TIMEOUT, TcpStream::connect(target))
            .await
            .map_err(|error| away(error.into()))?;
        // Small requests are answered one by one; waiting to fill a packet would only delay them.
        let _ = tcp.set_nodelay(true);
        let verifier = PinnedKey::new(self.pin);
        let config = verifier
            .config()
            .map_err(|error| Error::internal("TLS cannot be set up").source(error))?;
        let name =
            ServerName::try_from(address.host.clone()).map_err(|error| away(error.into()))?;
        let tls = in_time(
            CONNECT_TIMEOUT,
            TlsConnector::from(Arc::new(config)).connect(name, tcp),
        )
        .await
        .map_err(
            |error| match error.get_ref().and_then(|inner| inner.downcast_ref()) {
                Some(rustls::Error::InvalidCertificate(_)) => not_the_control_plane(&address),
                Some(_) => not_the_control_plane(&address).source(error),
                None => away(error.into()),
            },
        )?;
        let key = verifier
            .seen()
            .ok_or_else(|| Error::internal("a handshake without a key"))?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls))
            .await
            .map_err(|error| away(error.into()))?;
        // The task ends with the connection; whoever awaits the answer sees its error.
        tokio::spawn(connection);
        self.connection = Some(sender);
        Ok(key)
    }

    /// Send one request and wait for the head of a successful answer.
    async fn send(
        &mut self,
        method: Method,
        path: &str,
        kind: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>, Error> {
        let ready = match &mut self.connection {
            Some(sender) => sender.ready().await.is_ok(),
            None => false,
        };
        if !ready {
            self.connect().await?;
        }
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, self.authority())
            .header(
                header::USER_AGENT,
                concat!("casemate/", env!("CARGO_PKG_VERSION")),
            );
        if !body.is_empty() {
            request = request.header(header::CONTENT_TYPE, kind);
        }
        if let Some(token) = &self.token {
            let mut value = header::HeaderValue::try_from(format!("Bearer {}", token.as_str()))
                .map_err(|_| no_such_token())?;
            value.set_sensitive(true);
            request = request.header(header::AUTHORIZATION, value);
        }
        let request = request
            .body(Full::new(body))
            .map_err(|error| Error::internal("a request cannot be written").source(error))?;
        let sender = self
            .connection
            .as_mut()
            .ok_or_else(|| Error::internal("no connection"))?;
        let answer = in_time(ANSWER_TIMEOUT, async {
            sender
                .send_request(request)
                .await
                .map_err(std::io::Error::other)
        })
        .await;
        let response = answer.map_err(|error| {
            self.connection = None;
            self.broken(error)
        })?;
        let date = response.headers().get(header::DATE);
        let date = date.and_then(|date| date.to_str().ok());
        if let Some(clocks) = date.and_then(|date| Clocks::of_answer(date, now())) {
            self.clocks = Some(clocks);
        }
        let software = response.headers().get(header::SERVER);
        self.software = software
            .and_then(|software| software.to_str().ok())
            .map(|software| software.chars().take(MAX_SHOWN_CHARS).collect());
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let body = self.body(response).await.unwrap_or_default();
        let error = refused(status, &body).at(format!("{}{path}", self.address));
        Err(if may_be_unknown(status) {
            error.lines(versions(self.software.as_deref()))
        } else {
            error
        })
    }

    fn authority(&self) -> String {
        self.address.to_string().replacen("https://", "", 1)
    }

    fn broken(&self, error: std::io::Error) -> Error {
        Error::new(
            Code::Unreachable,
            "the connection to the control plane was lost",
            "run the command again: acknowledged changes are kept, and repeating is safe",
        )
        .at(&self.address)
        .source(error)
    }

    async fn body(&self, response: Response<Incoming>) -> Result<Bytes, Error> {
        let collected = in_time(BODY_TIMEOUT, async {
            let limited = Limited::new(response.into_body(), MAX_ANSWER_BYTES);
            limited.collect().await.map_err(std::io::Error::other)
        });
        let collected = collected.await.map_err(|error| self.broken(error))?;
        Ok(collected.to_bytes())
    }

    fn read<T: DeserializeOwned>(&self, path: &str, body: &[u8]) -> Result<T, Error> {
        serde_json::from_slice(body).map_err(|error| {
            Error::new(
                Code::Api,
                "the control plane's answer cannot be parsed",
                "compare the versions of casemate and casemate-control, and upgrade the older one",
            )
            .at(format!("{}{path}", self.address))
            .lines(versions(self.software.as_deref()))
            .source(error)
        })
    }

    /// GET something as JSON.
    ///
    /// # Errors
    /// The control plane cannot be reached, or refuses.
    pub async fn get<T: DeserializeOwned>(&mut self, path: &str) -> Result<T, Error> {
        let body = self.get_bytes(path).await?;
        self.read(path, &body)
    }

    /// GET bytes.
    ///
    /// # Errors
    /// See [`Api::get`].
    pub async fn get_bytes(&mut self, path: &str) -> Result<Bytes, Error> {
        let response = self.send(Method::GET, path, "", Bytes::new()).await?;
        self.body(response).await
    }

    /// GET a stream that continues until it is dropped.
    ///
    /// # Errors
    /// See [`Api::get`].
    pub async fn stream(&mut self, path: &str) -> Result<Incoming, Error> {
        let response = self.send(Method::GET, path, "", Bytes::new()).await?;
        // The stream owns the connection from here on.
        self.connection = None;
        Ok(response.into_body())
    }

    /// Whether a resource exists.
    ///
    /// # Errors
    /// See [`Api::get`].
    pub async fn has(&mut self, path: &str) -> Result<bool, Error> {
        match self.send(Method::HEAD, path, "", Bytes::new()).await {
            Ok(response) => self.body(response).await.map(|_| true),
            Err(error) if error.code() == Code::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Send JSON, get JSON.
    ///
    /// # Errors
    /// See [`Api::get`].
    pub async fn send_json<T: DeserializeOwned>(
        &mut self,
        method: Method,
        path: &str,
        value: &impl Serialize,
    ) -> Result<T, Error> {
        let json = serde_json::to_vec(value)
            .map_err(|error| Error::internal("a request has no JSON").source(error))?;
        let body = self
            .send_bytes(method, path, "application/json", json.into())
            .await?;
        self.read(path, &body)
    }

    /// Send bytes, get bytes.
    ///
    /// # Errors
    /// See [`Api::get`].
    pub async fn send_bytes(
        &mut self,
        method: Method,
        path: &str,
        kind: &str,
        body: Bytes,
    ) -> Result<Bytes, Error> {
        let response = self.send(method, path, kind, body).await?;
        self.body(response).await
    }

    /// DELETE something.
    ///
    /// # Errors
    /// See [`Api::get`].
    pub async fn delete(&mut self, path: &str) -> Result<(), Error> {
        self.send_bytes(Method::DELETE, path, "", Bytes::new())
            .await?;
        Ok(())
    }
}

async fn in_time<T>(
    limit: Duration,
    work: impl Future<Output = std::io::Result<T>>,
) -> std::io::Result<T> {
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| {
        Err(std::io::Error::new(
            std::io::ErrorKind::TimedOut,
            format!("no answer within {} seconds", limit.as_secs()),
        ))
    })
}

/// The versions of both programs, where they differ.
fn versions(theirs: Option<&str>) -> Option<String> {
    let ours = env!("CARGO_PKG_VERSION");
    let theirs = theirs?.strip_prefix("casemate-control/")?;
    (theirs != ours).then(|| {
        format!(
            "the control plane is casemate-control {theirs}, and this is casemate {ours}: the \
             older of the two may not support what the newer one sends. Upgrade the control plane \
             first"
        )
    })
}

/// The error for a server that does not hold the right key.
pub fn not_the_control_plane(address: &Address) -> Error {
    Error::new(
        Code::NotTheControlPlane,
        "the server at this address does not have the key that the fleet's root signed for the \
         control plane",
        "compare the address and the fingerprint with the operator's. If the control plane was set \
         up again, the operator signs its keys with `casemate fleet online`. Nothing was sent",
    )
    .at(address)
}

fn no_such_token() -> Error {
    Error::new(
        Code::Forbidden,
        "the API token is malformed: it contains characters that a token cannot contain",
        "log in again with the token as it was shown",
    )
}
