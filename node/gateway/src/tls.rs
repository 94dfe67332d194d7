//! Certificates, chosen by server name.

use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::client::verify_server_name;
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert, ServerConfig};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};

use casemate_wire::control::gateway::CertificateFiles;

/// Protocols that the gateway offers, most preferred first.
const ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// Why a certificate cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The file is missing or unreadable.
    #[error(
        "{path}: expected a PEM file with {what}: {}",
        casemate_config::unreadable(source)
    )]
    Read {
        /// The file.
        path: String,
        /// The expected content.
        what: &'static str,
        /// The cause.
        source: std::io::Error,
    },
    /// The file is not PEM.
    #[error("{path}: expected a PEM file with {what}: {source}")]
    Pem {
        /// The file.
        path: String,
        /// The expected content.
        what: &'static str,
        /// The cause.
        source: rustls_pki_types::pem::Error,
    },
    /// The file contains no certificate.
    #[error("{path}: expected a certificate chain, found none")]
    Empty {
        /// The file.
        path: String,
    },
    /// Key and chain do not match, or are of an unsupported kind.
    #[error("{chain} and {key}: expected a chain and its key: {source}")]
    Pair {
        /// The chain's file.
        chain: String,
        /// The key's file.
        key: String,
        /// The cause.
        source: rustls::Error,
    },
    /// TLS cannot be set up.
    #[error("TLS: {0}")]
    Config(rustls::Error),
}

/// The certificates, in the order in which they were given. Each may be replaced by a renewed one.
#[derive(Debug)]
pub struct Certificates(Vec<ArcSwap<CertifiedKey>>);

impl Certificates {
    /// Reads the files.
    ///
    /// # Errors
    /// See [`TlsError`]; names the file.
    pub fn read(files: &[CertificateFiles]) -> Result<Self, TlsError> {
        files
            .iter()
            .map(|files| read(files).map(ArcSwap::from_pointee))
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// The certificate at this position.
    pub fn get(&self, place: usize) -> Option<Arc<CertifiedKey>> {
        self.0.get(place).map(ArcSwap::load_full)
    }

    /// Serves this certificate from now on. Existing connections are not affected.
    pub fn replace(&self, place: usize, key: CertifiedKey) {
        if let Some(served) = self.0.get(place) {
            served.store(Arc::new(key));
        }
    }

    /// The position of the certificate for `name`: the first that names it, otherwise the first of
    /// all.
    pub fn place(&self, name: &str) -> usize {
        let Ok(name) = ServerName::try_from(name) else {
            return 0;
        };
        let names = |key: &ArcSwap<CertifiedKey>| {
            let key = key.load();
            let parsed = key
                .cert
                .first()
                .and_then(|leaf| ParsedCertificate::try_from(leaf).ok());
            parsed.is_some_and(|parsed| verify_server_name(&parsed, &name).is_ok())
        };
        self.0.iter().position(names).unwrap_or(0)
    }

    /// The TLS configuration that serves these certificates.
    ///
    /// # Errors
    /// The provider does not support the protocol versions.
    pub fn config(self: &Arc<Self>) -> Result<Arc<ServerConfig>, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Config)?;
        let mut config = builder
            .with_no_client_auth()
            .with_cert_resolver(self.clone());
        config.alpn_protocols = ALPN.iter().map(|name| name.to_vec()).collect();
        Ok(Arc::new(config))
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let place = hello.server_name().map_or(0, |name| self.place(name));
        self.get(place)
    }
}

/// Reads a pair of files.
///
/// # Errors
/// See [`TlsError`]; names the file.
pub fn read(files: &CertificateFiles) -> Result<CertifiedKey, TlsError> {
    let CertificateFiles { chain, key } = files;
    let pem = |path: &String, what| {
        let path = path.clone();
        move |error| match error {
            rustls_pki_types::pem::Error::Io(source) => TlsError::Read { path, what, source },
            source => TlsError::Pem { path, what, source },
        }
    };
    let certificates =
        CertificateDer::pem_file_iter(chain).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let certificates = certificates.map_err(pem(chain, "a certificate chain"))?;
    if certificates.is_empty() {
        return Err(TlsError::Empty {
            path: chain.clone(),
        });
    }
    let private = PrivateKeyDer::from_pem_file(key).map_err(pem(key, "a private key"))?;
    let pair = |source| TlsError::Pair {
        chain: chain.clone(),
        key: key.clone(),
        source,
    };
    let provider = rustls::crypto::ring::default_provider();
    CertifiedKey::from_der(certificates, private, &provider).map_err(pair)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(folder: &std::path::Path, names: &[&str]) -> CertificateFiles {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(names.clone()).unwrap();
        let path = |end: &str| {
            folder
                .join(format!("{}.{end}", names[0].trim_start_matches("*.")))
                .to_string_lossy()
                .into_owned()
        };
        std::fs::write(path("pem"), made.cert.pem()).unwrap();
        std::fs::write(path("key"), made.signing_key.serialize_pem()).unwrap();
        CertificateFiles {
            chain: path("pem"),
            key: path("key"),
        }
    }

    #[test]
    fn the_names_in_a_certificate_choose_it_and_the_first_is_the_default() {
        let folder = tempfile::tempdir().unwrap();
        let certificates = [
            files(folder.path(), &["a.test"]),
            files(folder.path(), &["b.test", "c.test"]),
            files(folder.path(), &["*.d.test"]),
        ];
        let certificates = Certificates::read(&certificates).unwrap();
        let places = [
            "a.test",
            "b.test",
            "c.test",
            "x.d.test",
            "d.test",
            "x.y.d.test",
            "other.test",
            "not a name",
        ]
        .map(|n| certificates.place(n));
        assert_eq!(places, [0, 1, 1, 2, 0, 0, 0, 0]);
    }

    #[test]
    fn mistakes_name_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (
            files(folder.path(), &["a.test"]),
            files(folder.path(), &["b.test"]),
        );
        let error = |chain: &str, key: &str| {
            Certificates::read(&[CertificateFiles {
                chain: chain.to_owned(),
                key: key.to_owned(),
            }])
            .unwrap_err()
            .to_string()
        };
        assert!(error("/nowhere.pem", &one.key).starts_with("/nowhere.pem: "));
        assert!(error(&one.chain, "/nowhere.key").starts_with("/nowhere.key: "));
        assert!(error(&one.key, &one.key).contains("found none"));
        assert!(error(&one.chain, &two.key).contains("b.test.key"));
        std::fs::write(
            folder.path().join("bad"),
            "-----BEGIN CERTIFICATE-----\n%%%\n-----END CERTIFICATE-----\n",
        )
        .unwrap();
        assert!(
            error(&folder.path().join("bad").to_string_lossy(), &one.key)
                .contains("certificate chain")
        );
    }
}
