//! Searches the answer to a call for secrets, and acts on matches.
//!
//! A value that a function stored through one slot may return through another slot, or through
//! plain `fetch`. So each answer of a host is searched for every secret that the function may send
//! to that host, whatever the call carried.

use std::sync::Arc;

use casemate_trust::host::HostName;
use casemate_trust::id::{Digest, TenantId};
use casemate_trust::judge::TenantState;
use casemate_trust::name::{Identifier, Name};
use casemate_trust::release::{Credential, Release};
use casemate_trust::secret::{Reflection, Secret};
use casemate_vault_core::reflection::{MAX_MATCHES, Recorded};
use casemate_wire::CallCode;

use super::caller::Caller;
use super::heads::CredentialedRules;
use super::refused::Refused;
use super::searchers::{Key, Shared, Values};
use crate::vault::{Owner, Reflected, State, Vault};

/// The secrets that one answer may hold.
pub(super) struct Watch {
    reflected: Arc<Reflected>,
    tenant: TenantId,
    function: Name,
    /// The secrets, in the order of the searcher's values.
    secrets: Vec<(Identifier, Reflection)>,
    pub(super) rules: CredentialedRules,
}

impl Watch {
    /// Makes the watch for a call to this host, with the values to search for. `None` where the
    /// release declares no credential for the host.
    ///
    /// # Errors
    /// Answers of this host have held one of the secrets too often.
    pub(super) fn new(
        vault: &Vault,
        state: &State,
        tenant: &TenantState,
        caller: &Caller,
        release: &Release,
        host: &HostName,
    ) -> Result<Option<(Self, Values)>, Refused> {
        let credentials = release.credentials.iter();
        let mut of_host = credentials.filter(|slot| slot.host == *host).peekable();
        if of_host.peek().is_none() {
            return Ok(None);
        }
        let mut secrets = Vec::new();
        let mut values = Values::new(Key::new(caller.tenant, caller.release, host.clone()));
        let mut rules = CredentialedRules { ranges: true };
        for credential in of_host {
            rules.ranges &= credential.ranges;
            // A secret for which this node has no key was never sent by it.
            let Some((digest, listed)) = listed(state, tenant, credential) else {
                continue;
            };
            let reflection = listed.place.limits.reflection;
            if reflection == Reflection::Refuse {
                let secret = &credential.secret;
                let (tenant, function) = (&caller.tenant, &caller.function);
                let until_ms = vault.reflected.stopped_until(tenant, function, secret);
                until_ms.map_or(Ok(()), |_| Err(reflected(secret)))?;
            }
            secrets.push((credential.secret.clone(), reflection));
            values.add(digest, listed.clone(), credential.slot.clone());
        }
        let watch = Self {
            reflected: vault.reflected.clone(),
            tenant: caller.tenant,
            function: caller.function.clone(),
            secrets,
            rules,
        };
        Ok(Some((watch, values)))
    }

    /// Counts the matches of each value, and returns when the counts are on the disk: the answer is
    /// delivered after that.
    ///
    /// # Errors
    /// A credential stops because of this match, or has stopped while the call was under way.
    pub(super) async fn count(&self, matches: &[u32]) -> Result<(), Refused> {
        let found = self.secrets.iter().zip(matches);
        let counting = found.filter(|((_, reflection), matches)| {
            **matches > 0 && *reflection == Reflection::Refuse
        });
        // All matches are counted before any write is waited for, so that an abandoned call leaves
        // none out.
        let recordings: Vec<_> = counting
            .map(|((secret, _), matches)| {
                let owner = Owner {
                    tenant: self.tenant,
                    function: self.function.clone(),
                    secret: secret.clone(),
                };
                (secret, self.reflected.record(owner, *matches))
            })
            .collect();
        let mut stopped = None;
        for (secret, recording) in recordings {
            let recorded = recording.written().await;
            if recorded == Recorded::Stops {
                tracing::warn!(
                    tenant = %self.tenant,
                    function = %self.function,
                    %secret,
                    "answers held a secret {MAX_MATCHES} times in an hour; the credential is \
                     stopped for this function for an hour"
                );
            }
            if recorded != Recorded::Counts {
                stopped = Some(reflected(secret));
            }
        }
        stopped.or_else(|| self.stopped()).map_or(Ok(()), Err)
    }

    /// Why calls to the host are refused now, if they are. Answers under way when a credential
    /// stops are cut too: otherwise the answers that continue would identify the wrong ones among
    /// many simultaneous guesses.
    fn stopped(&self) -> Option<Refused> {
        let (tenant, function) = (&self.tenant, &self.function);
        let refusing = self.secrets.iter();
        let mut refusing = refusing.filter(|(_, reflection)| *reflection == Reflection::Refuse);
        let stopped = refusing.find(|(secret, _)| {
            let until_ms = self.reflected.stopped_until(tenant, function, secret);
            until_ms.is_some()
        });
        stopped.map(|(secret, _)| reflected(secret))
    }
}

/// State for an answer that is searched.
pub(super) struct Credentialed {
    pub(super) watch: Watch,
    /// `None`: every secret is too short to be searched for.
    pub(super) searcher: Option<Arc<Shared>>,
}

/// A secret that is listed for this node's pool, and for which the node has the key. It is searched
/// for even after expiry or the end of the lease, because it may have been sent before.
fn listed<'a>(
    state: &State,
    tenant: &'a TenantState,
    credential: &Credential,
) -> Option<(Digest, &'a Arc<Secret>)> {
    let pool = &state.identity.pool;
    let secret = tenant.secret(&credential.secret, pool)?;
    let place = &secret.place;
    state.pool_keys.expose_secret(&place.pool, place.epoch)?;
    let manifest = &tenant.manifest.as_ref()?.manifest;
    let digest = manifest.secrets.get(&credential.secret)?.get(pool)?;
    Some((*digest, secret))
}

/// The refusal of a call whose credential is stopped.
pub(super) fn reflected(secret: &Identifier) -> Refused {
    Refused::new(
        CallCode::CredentialReflected,
        format!(
            "answers of the upstream held the secret {secret} {MAX_MATCHES} times in an hour, so \
             this function's calls to that host are refused for an hour; if the upstream returns \
             it by design, seal it again with `--reflection scrub`"
        ),
    )
}
