//! The freshness of the tenant's newest manifest.

use std::path::PathBuf;

use casemate_api::limits::FRESHNESS_INTERVAL_SECS;
use casemate_api::tenant::FreshnessAnswer;
use casemate_trust::Seconds;
use casemate_trust::dsse::Envelope;
use casemate_trust::freshness::{Freshness, FreshnessDemand};
use casemate_trust::judge::{Refusal, Standing};
use casemate_trust::key::SigningKey;
use casemate_trust::keyfile::Purpose;
use casemate_trust::statement::Statement as _;
use http::Method;

use super::Tenancy;
use crate::error::{Code, Error};
use crate::keys;
use crate::machine::now;
use crate::memory::refused;

/// The result of a renewal.
#[derive(Debug, Clone, Copy)]
pub struct Renewed {
    /// Version of the manifest.
    pub version: u64,
    /// Until when it is fresh.
    pub until: Seconds,
    /// How long a renewal holds, seconds.
    pub max_age_secs: u64,
    /// Whether a statement was signed; shortly after an earlier one, none is needed.
    pub is_new: bool,
}

impl Tenancy<'_> {
    /// Judges the statement that the control plane shows. A statement that a node would refuse is
    /// ignored: the manifest is then as fresh as without it, and can be renewed.
    ///
    /// # Errors
    /// An accepted statement cannot be written.
    pub(super) fn read_freshness(&mut self, shown: Option<&Envelope>) -> Result<(), Error> {
        let Some(envelope) = shown else { return Ok(()) };
        match self.session.known.decide(envelope, now()) {
            Ok(change) => drop(self.session.known.keep(change, envelope)?),
            Err(Refusal::FreshnessExpired(_)) => {}
            Err(refusal) => self.session.cx.output.warn(&format!(
                "the control plane shows a statement of freshness that nodes refuse ({}); it is \
                 ignored",
                refusal.code()
            )),
        }
        Ok(())
    }

    /// Whether the newest manifest is fresh.
    pub fn standing(&self) -> Standing {
        let judge = self.session.known.judge();
        judge
            .tenant(&self.id)
            .map_or(Standing::Undemanded, |state| {
                state.standing(judge.time(now()))
            })
    }

    /// Signs and uploads a statement of freshness about the newest manifest. `pinned` is the
    /// version of the newest deployment, from another source than the control plane. Without
    /// `pinned` this home must be one that deploys: only such a home knows of a manifest that the
    /// control plane hides.
    ///
    /// # Errors
    /// No freshness is demanded, no key here may sign, or the control plane shows an older manifest
    /// than was signed, or refuses.
    pub async fn renew_freshness(
        &mut self,
        pinned: Option<u64>,
        with_keys: &[PathBuf],
    ) -> Result<Renewed, Error> {
        self.publish_again().await?;
        let state = self.session.known.judge().tenant(&self.id);
        let accord = state.and_then(|state| state.manifest.as_ref());
        let demand = accord.and_then(|accord| Some((accord, accord.manifest.freshness.clone()?)));
        let Some((accord, demand)) = demand else {
            return Err(undemanded());
        };
        let (version, manifest) = (accord.manifest.version, accord.digest);
        self.must_be_newest(version, pinned)?;
        let now = self.session.known.judge().time(now());
        let before = state
            .and_then(|state| state.freshness.as_ref())
            .filter(|statement| statement.manifest == manifest)
            .map(|statement| statement.issued);
        if let Some(issued) = before.filter(|at| now.abs_diff(*at) < FRESHNESS_INTERVAL_SECS) {
            return Ok(Renewed {
                version,
                until: issued + demand.max_age_secs,
                max_age_secs: demand.max_age_secs,
                is_new: false,
            });
        }
        self.session.must_have_the_time()?;
        let signers = self.freshness_signers(&demand, with_keys)?;
        let statement = Freshness {
            fleet: self.session.fleet(),
            tenant: self.id,
            version,
            manifest,
            issued: now,
        };
        let envelope = statement.sign(&signers.iter().collect::<Vec<_>>());
        let decided = self.session.known.decide(&envelope, now);
        let change = decided.map_err(|refusal| refused("statement of freshness", refusal))?;
        let path = format!("/v1/tenants/{}/freshness", self.id);
        let api = &mut self.session.api;
        api.send_json::<FreshnessAnswer>(Method::PUT, &path, &envelope)
            .await?;
        self.session.known.keep(change, &envelope)?;
        Ok(Renewed {
            version,
            until: now + demand.max_age_secs,
            max_age_secs: demand.max_age_secs,
            is_new: true,
        })
    }

    fn must_be_newest(&self, shown: u64, pinned: Option<u64>) -> Result<(), Error> {
        match pinned {
            Some(pinned) if shown < pinned => Err(Error::new(
                Code::Refused,
                format!(
                    "the control plane shows manifest {shown}, and manifest {pinned} is the \
                     newest"
                ),
                "nothing was signed: credentials stop when the time that the manifest allows is \
                 over. The control plane was restored from an older copy, or hides a deployment; \
                 ask the operator",
            )
            .at(self.session.api.address())),
            Some(_) => Ok(()),
            None if self.deploys_here()? => Ok(()),
            None => Err(Error::new(
                Code::Usage,
                format!(
                    "this home does not deploy, and cannot know whether manifest {shown} is \
                     the newest"
                ),
                "run this in the home that deploys, or name a file that each deployment writes its \
                 version to: `--newest-from FILE`",
            )),
        }
    }

    /// Whether this home's key is one of this tenant's, so that the home remembers what it has
    /// signed. A key of another tenant has signed nothing for this one.
    fn deploys_here(&self) -> Result<bool, Error> {
        let keys = self.session.cx.keys();
        if !keys.has(keys::TENANT) {
            return Ok(false);
        }
        let public = match keys.tenant_public()? {
            Some(public) => public,
            None => keys.signing(keys::TENANT, Purpose::Tenant)?.public(),
        };
        Ok(self.tenant.current.keys.contains(&public))
    }

    /// The key that the manifest names, if it is in this home; else the tenant's own keys.
    fn freshness_signers(
        &self,
        demand: &FreshnessDemand,
        with_keys: &[PathBuf],
    ) -> Result<Vec<SigningKey>, Error> {
        let keys = self.session.cx.keys();
        if keys.has(keys::FRESHNESS) && with_keys.is_empty() {
            let key = keys.signing(keys::FRESHNESS, Purpose::Freshness)?;
            if demand.key == Some(key.public()) {
                return Ok(vec![key]);
            }
            if !keys.has(keys::TENANT) {
                let next = format!(
                    "sign a manifest that names it, where the tenant's key is: \
                     `casemate freshness require --max-age {}s --key {}`",
                    demand.max_age_secs,
                    key.public()
                );
                let what = "the newest manifest does not name this home's freshness key";
                return Err(Error::new(Code::NoKey, what, next));
            }
        }
        self.signers(with_keys)
    }
}

/// The error for a manifest that demands no freshness.
pub fn undemanded() -> Error {
    Error::new(
        Code::NotFound,
        "the newest manifest demands no freshness",
        "there is nothing to renew or to switch off; `casemate freshness require --max-age 1h` \
         signs a manifest that demands it",
    )
}
