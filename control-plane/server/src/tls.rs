//! TLS: the API's self-signed certificate, whose key clients pin, and raw public keys (RFC 7250) at both ends of QUIC.

use std::sync::Arc;

use casemate_push::Versions;
use casemate_trust::key::{PublicKey, SEED_BYTES, SigningKey};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, ring, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, ServerConfig,
    SignatureScheme,
};
use zeroize::Zeroizing;

use crate::failure::Failure;

/// The bytes before the 32 bytes of an Ed25519 key in a SubjectPublicKeyInfo (RFC 8410, section 4).
const SPKI_PREFIX: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];
/// The bytes before the seed in a PKCS #8 key (RFC 8410, section 7).
const PKCS8_PREFIX: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];
/// Name in the API's certificate; clients check only the key.
const API_NAME: &str = "casemate-control";

/// TLS configuration of the API's listener.
pub(crate) fn api(key: &SigningKey) -> Result<ServerConfig, Failure> {
    let der = pkcs8(key);
    let pair = rcgen::KeyPair::from_pkcs8_der_and_sign_algo(
        &PrivatePkcs8KeyDer::from(der.as_slice()),
        &rcgen::PKCS_ED25519,
    );
    let made = pair.and_then(|pair| {
        let mut params = rcgen::CertificateParams::new(vec![API_NAME.to_owned()])?;
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, API_NAME);
        params.self_signed(&pair)
    });
    let certificate = made.map_err(|error| Failure::internal(error.to_string()))?;
    let private = PrivatePkcs8KeyDer::from(der.to_vec()).into();
    let config = builder()?
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], private);
    let mut config = config.map_err(|error| Failure::internal(error.to_string()))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// TLS configuration of the QUIC socket. Every Ed25519 key may connect; the key decides what it may
/// do. The newest common protocol version is used.
pub(crate) fn quic(key: &SigningKey, versions: Versions) -> Result<ServerConfig, Failure> {
    let der = pkcs8(key);
    let signing = ring::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(der.as_slice()));
    let signing = signing.map_err(|error| Failure::internal(error.to_string()))?;
    let spki = CertificateDer::from([&SPKI_PREFIX[..], key.public().as_bytes()].concat());
    let certified = Arc::new(CertifiedKey::new(vec![spki], signing));
    let mut config = builder()?
        .with_client_cert_verifier(Arc::new(AnyEd25519Key(ring::default_provider())))
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(certified)));
    config.alpn_protocols = versions.alpns();
    // No resumption and no 0-RTT: each connection proves its key again.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(config)
}

/// The key of a raw public key.
pub(crate) fn public_key(spki: &CertificateDer<'_>) -> Option<PublicKey> {
    let key = spki.as_ref().strip_prefix(&SPKI_PREFIX)?;
    Some(PublicKey::from_bytes(key.try_into().ok()?))
}

fn builder() -> Result<rustls::ConfigBuilder<ServerConfig, rustls::WantsVerifier>, Failure> {
    let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
    builder
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| Failure::internal(error.to_string()))
}

fn pkcs8(key: &SigningKey) -> Zeroizing<Vec<u8>> {
    let mut der = Zeroizing::new(Vec::with_capacity(PKCS8_PREFIX.len() + SEED_BYTES));
    der.extend_from_slice(&PKCS8_PREFIX);
    der.extend_from_slice(key.expose_secret());
    der
}

#[derive(Debug)]
struct AnyEd25519Key(CryptoProvider);

impl ClientCertVerifier for AnyEd25519Key {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        match public_key(end_entity) {
            Some(_) if intermediates.is_empty() => Ok(ClientCertVerified::assertion()),
            _ => Err(CertificateError::BadEncoding.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("QUIC is TLS 1.3".into()))
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
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}
