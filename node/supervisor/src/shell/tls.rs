//! TLS of the push: both ends are raw public keys (RFC 7250). The node's private key stays in the vault, which signs.

use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use casemate_push::Versions;
use parking_lot::Mutex;
use rustls::client::AlwaysResolvesClientRawPublicKeys;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::sign::{CertifiedKey, Signer, SigningKey};
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureAlgorithm, SignatureScheme};

/// Until the vault has signed.
const SIGN_TIMEOUT: Duration = Duration::from_secs(5);
/// SubjectPublicKeyInfo of an Ed25519 key without the key (RFC 8410, section 4).
const ED25519_SPKI_PREFIX: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];

/// SubjectPublicKeyInfo of an Ed25519 key.
fn spki(key: &[u8; 32]) -> Vec<u8> {
    [&ED25519_SPKI_PREFIX[..], key].concat()
}

/// The TLS settings of a node: its key, the one key that the control plane may have, and the versions that are offered.
pub(crate) fn client(
    node_key: &[u8; 32],
    control_key: &[u8; 32],
    signer: OwnedFd,
    versions: Versions,
) -> Result<ClientConfig, Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let socket = std::os::unix::net::UnixStream::from(signer);
    let remote = RemoteKey {
        spki: spki(node_key),
        socket: Arc::new(Mutex::new(socket)),
    };
    let certified = CertifiedKey::new(vec![CertificateDer::from(spki(node_key))], Arc::new(remote));
    let verifier = Pinned {
        spki: spki(control_key),
        provider: provider.clone(),
    };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(Arc::new(
            certified,
        ))));
    config.alpn_protocols = versions.alpns();
    Ok(config)
}

/// Accepts one public key and no other.
#[derive(Debug)]
struct Pinned {
    spki: Vec<u8>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if end_entity.as_ref() == self.spki {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(Error::General(
                "the control plane has another key than the root signed".into(),
            ))
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.3 only".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let key = SubjectPublicKeyInfoDer::from(cert.as_ref());
        verify_tls13_signature_with_raw_key(
            message,
            &key,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// The node's key, in the vault.
#[derive(Debug, Clone)]
struct RemoteKey {
    spki: Vec<u8>,
    socket: Arc<Mutex<std::os::unix::net::UnixStream>>,
}

impl SigningKey for RemoteKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        offered
            .contains(&SignatureScheme::ED25519)
            .then(|| Box::new(self.clone()) as Box<dyn Signer>)
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        Some(SubjectPublicKeyInfoDer::from(self.spki.as_slice()))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ED25519
    }
}

impl Signer for RemoteKey {
    /// rustls asks synchronously: one handshake waits for the vault, a local process, for a moment.
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        let failed =
            |error: std::io::Error| Error::General(format!("the vault did not sign: {error}"));
        let mut socket = self.socket.lock();
        socket.set_nonblocking(false).map_err(failed)?;
        socket
            .set_read_timeout(Some(SIGN_TIMEOUT))
            .map_err(failed)?;
        socket
            .set_write_timeout(Some(SIGN_TIMEOUT))
            .map_err(failed)?;
        socket.write_all(message).map_err(failed)?;
        let mut signature = [0; 65];
        match socket.read(&mut signature).map_err(failed)? {
            64 => Ok(signature[..64].to_vec()),
            _ => Err(Error::General("the vault refused to sign".into())),
        }
    }

    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ED25519
    }
}
