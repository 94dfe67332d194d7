//! A node: `NodeEnd` over a real QUIC connection with raw public keys.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use casemate_api::node::{Admission, JoinList};
use casemate_push::bundle::{Part, Receiver};
use casemate_push::{
    Agreed, Has, Hello, NodeEnd, NodeEvent, Offer, StatementId, TenantHas, VERSIONS, Versions,
};
use casemate_trust::dsse::Envelope;
use casemate_trust::id::{Digest, FleetId};
use casemate_trust::join::JoinToken;
use casemate_trust::key::{PublicKey, SigningKey};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{Connection, ConnectionError, Endpoint, RecvStream, SendStream, TransportConfig};
use rustls::client::AlwaysResolvesClientRawPublicKeys;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{
    CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime,
};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, Error, SignatureScheme};

use crate::fleet::{LATER, key};
use crate::{Client, Fleet, Plane, SOON};

const SPKI_PREFIX: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];
const PKCS8_PREFIX: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

/// A node without a vault: one connection, driven by the test step by step.
pub struct Node {
    pub end: NodeEnd,
    pub connection: Connection,
    send: SendStream,
    recv: RecvStream,
    _endpoint: Endpoint,
}

/// The client configuration of a node with this key, which expects that key of the control plane.
pub fn quic_config(
    key: &SigningKey,
    control: PublicKey,
    alpns: Vec<Vec<u8>>,
) -> quinn::ClientConfig {
    let der = [&PKCS8_PREFIX[..], key.expose_secret()].concat();
    let signing = ring::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(der)).unwrap();
    let spki = CertificateDer::from([&SPKI_PREFIX[..], key.public().as_bytes()].concat());
    let certified = Arc::new(CertifiedKey::new(vec![spki], signing));
    let builder = rustls::ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let mut config = builder
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Raw(control, ring::default_provider())))
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(certified)));
    config.alpn_protocols = alpns;
    let mut config =
        quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(config).unwrap()));
    let mut transport = TransportConfig::default();
    transport
        .keep_alive_interval(Some(Duration::from_secs(5)))
        .max_concurrent_uni_streams(8_u32.into());
    config.transport_config(Arc::new(transport));
    config
}

pub async fn connect(
    address: &str,
    config: quinn::ClientConfig,
) -> Result<(Endpoint, Connection), ConnectionError> {
    tokio::time::timeout(SOON, try_connect(address, config))
        .await
        .unwrap()
}

async fn try_connect(
    address: &str,
    config: quinn::ClientConfig,
) -> Result<(Endpoint, Connection), ConnectionError> {
    let endpoint = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let connecting = endpoint
        .connect_with(config, address.parse().unwrap(), "casemate-control")
        .unwrap();
    Ok((endpoint, connecting.await?))
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

pub fn hello(name: &str, key: &SigningKey, fleet: FleetId) -> Hello {
    Hello {
        protocol: VERSIONS.newest,
        node: name.parse().unwrap(),
        node_key: key.public(),
        fleet,
        software: "test".into(),
        cursor: None,
        has: Has::default(),
    }
}

/// Everything that the node received until the end of the synchronisation.
#[derive(Debug, Default)]
pub struct Came {
    pub statements: Vec<(StatementId, Vec<u8>)>,
    pub objects: BTreeMap<Digest, Vec<u8>>,
}

impl Came {
    pub fn ids(&self) -> Vec<StatementId> {
        self.statements.iter().map(|(id, _)| id.clone()).collect()
    }

    /// The list for the hello of a vault that has accepted all received statements.
    pub fn has(&self) -> Has {
        let mut has = Has::default();
        for (id, bytes) in &self.statements {
            match id {
                StatementId::Root { version } => has.root = *version,
                StatementId::OnlineKey { version } => has.online = *version,
                StatementId::Revocations { version } => has.revocations = *version,
                StatementId::Pool { epoch, .. } => drop(has.epochs.insert(*epoch)),
                StatementId::Grant { epoch, .. } => drop(has.grants.insert(*epoch)),
                StatementId::Image { version, statement } => {
                    has.image = Some((*version, *statement));
                }
                StatementId::Tenant { tenant, version } => {
                    has.tenants
                        .entry(*tenant)
                        .or_insert_with(TenantHas::default)
                        .version = *version;
                }
                StatementId::Manifest { tenant, version } => {
                    let digest = Envelope::parse(bytes).unwrap().payload_digest();
                    has.tenants
                        .entry(*tenant)
                        .or_insert_with(TenantHas::default)
                        .manifest = Some((*version, digest));
                }
                StatementId::Freshness {
                    tenant,
                    version,
                    issued,
                } => {
                    has.tenants
                        .entry(*tenant)
                        .or_insert_with(TenantHas::default)
                        .freshness = Some((*version, *issued));
                }
            }
        }
        has
    }
}

/// The error of [`Node::next`] when nothing has come for [`SOON`].
pub const QUIET: &str = "nothing received in time";

impl Node {
    pub async fn connect(control: &Plane, key: &SigningKey, end: NodeEnd) -> Self {
        Self::try_connect(control, key, end).await.unwrap()
    }

    /// Like [`Self::connect`], if the control plane may be absent.
    ///
    /// # Errors
    /// There is no answer, or an unexpected one.
    pub async fn try_connect(
        control: &Plane,
        key: &SigningKey,
        end: NodeEnd,
    ) -> Result<Self, String> {
        let config = quic_config(key, control.keys.quic, VERSIONS.alpns());
        let connected = tokio::time::timeout(SOON, try_connect(&control.quic, config)).await;
        let connected = connected.map_err(|_| QUIET)?.map_err(text)?;
        Self::on(connected, end).await
    }

    /// Uses an existing connection.
    ///
    /// # Errors
    /// The connection is lost.
    pub async fn on(
        (endpoint, connection): (Endpoint, Connection),
        end: NodeEnd,
    ) -> Result<Self, String> {
        let (send, recv) = connection.open_bi().await.map_err(text)?;
        let mut node = Self {
            end,
            connection,
            send,
            recv,
            _endpoint: endpoint,
        };
        node.try_write().await?;
        Ok(node)
    }

    /// Connects as a program that speaks these versions; returns the agreed version, and the member
    /// that speaks it.
    pub async fn speaking(
        control: &Plane,
        key: &SigningKey,
        versions: Versions,
        mut hello: Hello,
    ) -> (u16, Self) {
        let (endpoint, connection) = Self::meet(control, key, versions).await;
        let data = connection.handshake_data().unwrap();
        let data = data.downcast::<quinn::crypto::rustls::HandshakeData>();
        let name = data.unwrap().protocol.unwrap();
        let Some(Agreed::Version(version)) = versions.agreed(&name) else {
            panic!("no version in common")
        };
        hello.protocol = version;
        let node = Self::on((endpoint, connection), NodeEnd::member(hello)).await;
        (version, node.unwrap())
    }

    /// Connects as a program that has no version in common with the control plane; returns close
    /// code and reason.
    pub async fn apart(
        control: &Plane,
        key: &SigningKey,
        versions: Versions,
        software: &str,
    ) -> (u64, String) {
        let (_endpoint, connection) = Self::meet(control, key, versions).await;
        let (mut send, _recv) = connection.open_bi().await.unwrap();
        let offer = Offer::encode(versions, software);
        send.write_all(&offer).await.unwrap();
        match tokio::time::timeout(SOON, connection.closed())
            .await
            .unwrap()
        {
            ConnectionError::ApplicationClosed(close) => (
                close.error_code.into_inner(),
                String::from_utf8_lossy(&close.reason).into_owned(),
            ),
            other => panic!("{other}"),
        }
    }

    async fn meet(control: &Plane, key: &SigningKey, versions: Versions) -> (Endpoint, Connection) {
        let config = quic_config(key, control.keys.quic, versions.alpns());
        connect(&control.quic, config).await.unwrap()
    }

    /// Writes the waiting frames.
    pub async fn write(&mut self) {
        self.try_write().await.unwrap();
    }

    /// Like [`Self::write`], if the control plane may not read.
    ///
    /// # Errors
    /// The connection is lost.
    pub async fn try_write(&mut self) -> Result<(), String> {
        while let Some(frame) = self.end.poll_transmit() {
            self.send.write_all(&frame).await.map_err(text)?;
        }
        Ok(())
    }

    /// The next event, or why there is none.
    pub async fn next(&mut self) -> Result<NodeEvent, String> {
        loop {
            self.try_write().await?;
            if let Some(event) = self
                .end
                .poll_event()
                .map_err(|violation| violation.to_string())?
            {
                return Ok(event);
            }
            let read = tokio::time::timeout(SOON, self.recv.read_chunk(65_536, true))
                .await
                .map_err(|_| QUIET)?;
            let chunk = read
                .map_err(|error| error.to_string())?
                .ok_or("the stream has ended")?;
            self.end
                .receive(&chunk.bytes)
                .map_err(|violation| violation.to_string())?;
        }
    }

    /// Acknowledges everything until the control plane reports the end of the synchronisation.
    pub async fn sync(&mut self) -> Came {
        let mut came = Came::default();
        loop {
            match self.next().await.unwrap() {
                NodeEvent::Statement { id, bytes, .. } => {
                    self.end.ack(&id).unwrap();
                    came.statements.push((id, bytes));
                }
                NodeEvent::Object { digest, bytes, .. } => drop(came.objects.insert(digest, bytes)),
                NodeEvent::Synced { .. } => {
                    self.write().await;
                    return came;
                }
                _ => {}
            }
        }
    }

    /// Fetches a piece of an image.
    pub async fn fetch_image(&mut self, digest: Digest, offset: u64, bytes: u32) -> Vec<u8> {
        self.end.fetch_image(digest, offset, bytes).unwrap();
        self.write().await;
        let piece = self.stream().await;
        self.end.image_piece_done();
        piece
    }

    /// Fetches a bundle from `offset` on.
    pub async fn fetch(&mut self, digest: Digest, offset: u64) -> Vec<u8> {
        self.end.fetch_bundle(digest, offset).unwrap();
        self.write().await;
        let bytes = self.stream().await;
        self.end.bundle_done(&digest);
        bytes
    }

    async fn stream(&mut self) -> Vec<u8> {
        let mut stream = tokio::time::timeout(SOON, self.connection.accept_uni())
            .await
            .unwrap()
            .unwrap();
        let (mut receiver, mut bytes) = (Receiver::default(), Vec::new());
        while let Some(chunk) = stream.read_chunk(65_536, true).await.unwrap() {
            receiver.receive(&chunk.bytes).unwrap();
            while let Some(part) = receiver.poll().unwrap() {
                match part {
                    Part::Header(header) => drop(self.end.expects(&header).unwrap()),
                    Part::Bytes(more) => bytes.extend(more),
                    Part::End => {}
                }
            }
        }
        assert!(receiver.is_over());
        bytes
    }

    /// The code with which the control plane closes the connection.
    pub async fn close_code(&self) -> u64 {
        match tokio::time::timeout(SOON, self.connection.closed())
            .await
            .unwrap()
        {
            ConnectionError::ApplicationClosed(close) => close.error_code.into_inner(),
            other => panic!("{other}"),
        }
    }
}

#[derive(Debug)]
struct Raw(PublicKey, CryptoProvider);

impl ServerCertVerifier for Raw {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let is_key = end_entity.as_ref() == [&SPKI_PREFIX[..], self.0.as_bytes()].concat();
        is_key
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
        let spki = SubjectPublicKeyInfoDer::from(cert.as_ref());
        verify_tls13_signature_with_raw_key(
            message,
            &spki,
            dss,
            &self.1.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// A node that asks to join.
pub async fn joining(control: &Plane, fleet: &Fleet, token: &JoinToken, key: &SigningKey) -> Node {
    let request = fleet.join_request(token, key).to_bytes();
    Node::connect(control, key, NodeEnd::joining(request)).await
}

/// The operator's admission of a node that has asked to join.
pub async fn admission(control: &Plane, fleet: &Fleet, key: &SigningKey) -> Admission {
    let joins: JoinList = control.operator().get("/v1/nodes/joins").await.ok().json();
    let join = joins
        .joins
        .into_iter()
        .find(|join| join.node_key == key.public())
        .unwrap();
    Admission {
        request: join.request,
        node_key: join.node_key,
        name: join.node,
        pool: join.pool,
        grants: vec![fleet.grant(key)],
    }
}

/// A fleet whose tenant has deployed its function, and a member that holds everything.
pub async fn serving(control: &Plane) -> (Fleet, Client, Node) {
    let fleet = Fleet::new(control).await;
    let tenant = control.client(&fleet.tenant_token);
    fleet.deploy(&tenant, 1, b"bundle one").await;
    let mut node = member(control, &fleet, "edge-1", &key(20)).await;
    node.sync().await;
    (fleet, tenant, node)
}

/// A node that has joined and received all statements.
pub async fn member(control: &Plane, fleet: &Fleet, node: &str, key: &SigningKey) -> Node {
    let token = fleet.join_token(control, node, LATER).await;
    let mut joined = joining(control, fleet, &token, key).await;
    assert_eq!(joined.next().await.unwrap(), NodeEvent::JoinPending);
    let admission = admission(control, fleet, key).await;
    control
        .operator()
        .post("/v1/nodes/admit", &admission)
        .await
        .ok();
    assert_eq!(joined.next().await.unwrap(), NodeEvent::Admitted);
    joined.end.hello(hello(node, key, fleet.id)).unwrap();
    joined
}
