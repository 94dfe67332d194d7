//! The node's identity: its keys, its fleet, and the token until it is a member.

use casemate_trust::id::FleetId;
use casemate_trust::join::{JoinRequest, JoinToken};
use casemate_trust::key::{PublicKey, SigningKey};
use casemate_trust::name::Name;
use casemate_trust::statement::Statement as _;
use casemate_vault_core::keys::NodeKeys;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use crate::error::VaultError;

/// The identity in its sealed form.
#[derive(Serialize, Deserialize, Zeroize)]
#[zeroize(drop)]
#[serde(deny_unknown_fields)]
struct Stored {
    identity: [u8; 32],
    sealing: [u8; 32],
    token: Option<[u8; 32]>,
    #[zeroize(skip)]
    fleet: FleetId,
    #[zeroize(skip)]
    node: Name,
    #[zeroize(skip)]
    pool: Name,
    #[zeroize(skip)]
    control_address: String,
    #[zeroize(skip)]
    control_key: PublicKey,
}

/// The identity in use.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) keys: NodeKeys,
    pub(crate) fleet: FleetId,
    pub(crate) node: Name,
    pub(crate) pool: Name,
    pub(crate) control_address: String,
    pub(crate) control_key: PublicKey,
    /// The key of the join token, until the node is a member.
    token: Option<SigningKey>,
}

impl Identity {
    /// Makes a new node's identity from its token.
    pub(crate) fn from_token(
        token: &JoinToken,
        random: casemate_trust::Random<'_>,
    ) -> Result<Self, VaultError> {
        let keys = NodeKeys::generate(random).map_err(|_| VaultError::Keys)?;
        Ok(Self {
            keys,
            fleet: token.fleet,
            node: token.node.clone(),
            pool: token.pool.clone(),
            control_address: token.control_address.clone(),
            control_key: token.control_key,
            token: Some(token.key().map_err(|_| VaultError::Keys)?),
        })
    }

    /// Parses the unsealed bytes.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, VaultError> {
        let stored: Stored = serde_json::from_slice(bytes).map_err(|_| VaultError::Keys)?;
        let token = stored
            .token
            .as_ref()
            .map(SigningKey::from_seed)
            .transpose()
            .map_err(|_| VaultError::Keys)?;
        Ok(Self {
            keys: NodeKeys::from_seeds(&stored.identity, &stored.sealing)
                .map_err(|_| VaultError::Keys)?,
            fleet: stored.fleet,
            node: stored.node.clone(),
            pool: stored.pool.clone(),
            control_address: stored.control_address.clone(),
            control_key: stored.control_key,
            token,
        })
    }

    /// Encodes the identity, to be sealed.
    pub(crate) fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        self.sealable(self.token.as_ref())
    }

    /// Encodes the identity as a member's, if the node is not a member yet.
    pub(crate) fn to_bytes_as_member(&self) -> Option<Zeroizing<Vec<u8>>> {
        self.token.as_ref().map(|_| self.sealable(None))
    }

    fn sealable(&self, token: Option<&SigningKey>) -> Zeroizing<Vec<u8>> {
        let (identity, sealing) = self.keys.expose_secret();
        let stored = Stored {
            identity: *identity,
            sealing: *sealing,
            token: token.map(|token| *token.expose_secret()),
            fleet: self.fleet,
            node: self.node.clone(),
            pool: self.pool.clone(),
            control_address: self.control_address.clone(),
            control_key: self.control_key,
        };
        Zeroizing::new(serde_json::to_vec(&stored).expect("keys and names are JSON"))
    }

    /// Uses a newer token, if the node never became a member with the one before.
    pub(crate) fn renew(&mut self, token: &JoinToken) -> Result<bool, VaultError> {
        let key = token.key().map_err(|_| VaultError::Keys)?;
        let same = self
            .token
            .as_ref()
            .is_none_or(|held| held.public() == key.public());
        if same || token.fleet != self.fleet {
            return Ok(false);
        }
        (self.node, self.pool) = (token.node.clone(), token.pool.clone());
        (self.control_address, self.control_key) =
            (token.control_address.clone(), token.control_key);
        self.token = Some(key);
        Ok(true)
    }

    /// The signed request to become a member; `None` once the node is one.
    pub(crate) fn join_request(&self) -> Option<Vec<u8>> {
        let token = self.token.as_ref()?;
        let request = JoinRequest {
            fleet: self.fleet,
            node: self.node.clone(),
            pool: self.pool.clone(),
            node_key: self.keys.identity().public(),
            sealing_key: self.keys.sealing_key().clone(),
        };
        Some(request.sign(&[token, self.keys.identity()]).to_bytes())
    }

    /// Forgets the token, because the node is a member now.
    pub(crate) fn forget_token(&mut self) {
        self.token = None;
    }
}
