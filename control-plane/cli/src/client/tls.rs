//! TLS without certificate authorities: the server is identified by one Ed25519 key.

use std::sync::Arc;

use casemate_trust::key::PublicKey;
use parking_lot::Mutex;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, PeerIncompatible, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

/// The bytes before the 32 bytes of an Ed25519 key in its SubjectPublicKeyInfo (RFC 8410, section
/// 4).
const ED25519_SPKI: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];

/// Accepts a self-signed certificate whose key is the pinned one; without a pin, it accepts any key
/// and remembers it. In both cases the handshake's signature proves that the server holds the key.
/// Names and dates in the certificate are ignored.
#[derive(Debug)]
pub(super) struct PinnedKey {
    pin: Option<PublicKey>,
    seen: Mutex<Option<PublicKey>>,
    provider: Arc<CryptoProvider>,
}

impl PinnedKey {
    pub(super) fn new(pin: Option<PublicKey>) -> Arc<Self> {
        Arc::new(Self {
            pin,
            seen: Mutex::new(None),
            provider: Arc::new(rustls::crypto::ring::default_provider()),
        })
    }

    /// The key of the last handshake.
    pub(super) fn seen(&self) -> Option<PublicKey> {
        *self.seen.lock()
    }

    /// A TLS 1.3 configuration whose certificate verifier is this value.
    pub(super) fn config(self: &Arc<Self>) -> Result<ClientConfig, Error> {
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(self) as Arc<dyn ServerCertVerifier>)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        // A ticket would resume a session without a new proof of the key.
        config.resumption = rustls::client::Resumption::disabled();
        Ok(config)
    }
}

impl ServerCertVerifier for PinnedKey {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let spki = ParsedCertificate::try_from(end_entity)?.subject_public_key_info();
        let key = spki
            .strip_prefix(&ED25519_SPKI)
            .and_then(|key| <[u8; 32]>::try_from(key).ok())
            .map(PublicKey::from_bytes)
            .ok_or(Error::InvalidCertificate(CertificateError::BadEncoding))?;
        *self.seen.lock() = Some(key);
        match self.pin {
            Some(pin) if pin != key => Err(Error::InvalidCertificate(
                CertificateError::ApplicationVerificationFailure,
            )),
            _ => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::PeerIncompatible(
            PeerIncompatible::Tls13RequiredForQuic,
        ))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}
