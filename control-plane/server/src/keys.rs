//! The control plane's own keys: three Ed25519 seeds and the secrets of its QUIC socket, in files
//! that only its user can read.

use std::path::Path;

use casemate_api::fleet::PublicKeys;
use casemate_trust::key::SigningKey;
use casemate_trust::keyfile::{self, Purpose};
use ring::rand::{SecureRandom as _, SystemRandom};
use zeroize::Zeroizing;

use crate::failure::Failure;
use crate::fault::Fault;
use crate::files;

/// Bytes of the secrets of the QUIC socket: reset key, token key.
const SOCKET_BYTES: usize = 64 + 32;

/// The keys, read once at the start and shared by both listeners. None of them signs a statement or
/// opens a secret.
#[derive(Debug)]
pub(crate) struct Keys {
    /// Signs leases.
    pub(crate) liveness: SigningKey,
    /// Key of the QUIC socket.
    pub(crate) quic: SigningKey,
    /// Key of the API's certificate.
    pub(crate) api: SigningKey,
    /// Keys by which nodes notice a restart at once: stateless resets and address tokens survive
    /// the process.
    pub(crate) socket: SocketSecrets,
}

/// See [`Keys::socket`].
pub(crate) struct SocketSecrets(Zeroizing<Vec<u8>>);

impl std::fmt::Debug for SocketSecrets {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        to.write_str("SocketSecrets(..)")
    }
}

impl SocketSecrets {
    /// Key of the stateless resets.
    pub(crate) fn expose_reset_key(&self) -> &[u8] {
        &self.0[..64]
    }

    /// Key of the address tokens.
    pub(crate) fn expose_token_key(&self) -> &[u8] {
        &self.0[64..]
    }
}

impl Keys {
    /// Makes new keys in `folder`.
    pub(crate) fn create(folder: &Path) -> Result<Self, Failure> {
        for (name, purpose) in FILES {
            let seed = Zeroizing::new(fresh::<32>()?);
            let mut fill = |bytes: &mut [u8]| bytes.fill(0);
            // Without a passphrase the file contains no random data besides the seed.
            let text = keyfile::write(purpose, &seed, None, &mut fill)
                .map_err(|error| Failure::internal(error.to_string()))?;
            files::write_private(&folder.join(name), text.as_bytes())?;
        }
        let socket = Zeroizing::new(fresh::<SOCKET_BYTES>()?.to_vec());
        files::write_private(&folder.join(SOCKET_FILE), &socket)?;
        Self::open(folder)
    }

    /// Reads the keys from `folder`.
    pub(crate) fn open(folder: &Path) -> Result<Self, Failure> {
        let [liveness, quic, api] = FILES.map(|(name, purpose)| read(&folder.join(name), purpose));
        let path = folder.join(SOCKET_FILE);
        let socket = Zeroizing::new(files::read(&path)?);
        if socket.len() != SOCKET_BYTES {
            return Err(Failure::config(format!(
                "{}: expected {SOCKET_BYTES} bytes",
                path.display()
            )));
        }
        Ok(Self {
            liveness: liveness?,
            quic: quic?,
            api: api?,
            socket: SocketSecrets(socket),
        })
    }

    /// The public halves.
    pub(crate) fn public(&self) -> PublicKeys {
        PublicKeys {
            liveness: self.liveness.public(),
            quic: self.quic.public(),
            api: self.api.public(),
        }
    }
}

const FILES: [(&str, Purpose); 3] = [
    ("liveness.key", Purpose::Liveness),
    ("quic.key", Purpose::Quic),
    ("api.key", Purpose::Api),
];
const SOCKET_FILE: &str = "quic-socket.key";

/// The names of the files.
pub(crate) fn files() -> impl Iterator<Item = &'static str> {
    let keys = FILES.iter().map(|(name, _)| *name);
    keys.chain([SOCKET_FILE])
}

fn read(path: &Path, purpose: Purpose) -> Result<SigningKey, Failure> {
    let bytes = Zeroizing::new(files::read(path)?);
    let wrong = |error: String| Failure::config(format!("{}: {error}", path.display()));
    let text = std::str::from_utf8(&bytes).map_err(|error| wrong(error.to_string()))?;
    let seed = keyfile::read(text, purpose, None).map_err(|error| wrong(error.to_string()))?;
    SigningKey::from_seed(&seed).map_err(|error| wrong(error.to_string()))
}

/// Unpredictable bytes.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], Fault> {
    let mut bytes = [0; N];
    let filled = SystemRandom::new().fill(&mut bytes);
    filled.map(|()| bytes).map_err(|_| Fault::storage_failed())
}

fn fresh<const N: usize>() -> Result<[u8; N], Failure> {
    random().map_err(|_| Failure::internal("the kernel gave no random bytes"))
}
