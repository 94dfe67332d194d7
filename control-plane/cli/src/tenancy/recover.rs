//! Recovery from a control plane that has less than this home remembers, or less than the nodes
//! hold: it was restored from an older copy, or an attacker rolls it back. What this home has is
//! uploaded again; nothing older is accepted in its place.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use casemate_api::error::code;
use casemate_api::tenant::ManifestAnswer;
use casemate_trust::dsse::Envelope;
use casemate_trust::id::Digest;
use casemate_trust::judge::Refusal;
use casemate_trust::release::Release;
use casemate_trust::statement::{Manifest, Statement as _};
use http::Method;

use super::{Draft, Tenancy};
use crate::bundle_cache;
use crate::error::{Code, Error};
use crate::memory::{ObjectMap, refused};
use crate::session::older;

/// Largest step by which this home signs above a manifest that nodes hold according to the control
/// plane. Without a bound, one false report would use all numbers up.
const MAX_JUMP: u64 = 1000;

/// The result of an upload of a manifest.
#[derive(Debug)]
pub(super) enum HandedIn {
    Taken,
    /// Bundles that neither the control plane nor this home has.
    Lacks(Vec<Digest>),
}

impl Tenancy<'_> {
    /// Continues from what is remembered, over a control plane that shows `theirs` or nothing.
    pub(super) fn go_on_from_memory(&mut self, theirs: Option<u64>) {
        self.is_ahead = true;
        let ours = self.manifest().map_or(0, |manifest| manifest.version);
        let what = match theirs {
            Some(theirs) => {
                format!("this tenant (manifest {theirs}, and manifest {ours} is the newest)")
            }
            None => format!("this tenant (no manifest, and manifest {ours} is the newest)"),
        };
        self.session.cx.output.warn(&older(
            &what,
            "The next deployment restores it, or `casemate renew` does so now.",
        ));
    }

    /// Uploads again what this home remembers, if the control plane shows an older state.
    ///
    /// # Errors
    /// The control plane refuses it.
    pub(super) async fn publish_again(&mut self) -> Result<(), Error> {
        if !self.is_ahead {
            return Ok(());
        }
        self.session.publish_tenant(self.id, &self.view).await?;
        let Some(envelope) = self.session.known.manifest(&self.id).cloned() else {
            return Ok(());
        };
        let objects = self.objects.clone();
        match self.hand_in(&envelope, &objects).await {
            Ok(HandedIn::Taken) => {
                self.is_ahead = false;
                Ok(())
            }
            Ok(HandedIn::Lacks(_)) => Err(self.still_older().lines([
                "bundles that it lists are neither there nor in this home: deploy their functions \
                 again"
                    .to_owned(),
            ])),
            Err(error) if error.remote_code().is_some() => Err(self.still_older().source(error)),
            Err(error) => Err(error),
        }
    }

    fn still_older(&self) -> Error {
        let ours = self.manifest().map_or(0, |manifest| manifest.version);
        let shown = self.view.manifest.as_ref();
        let shown = shown.and_then(|shown| Manifest::read(shown).ok());
        let theirs = shown.map_or(0, |manifest| manifest.version);
        refused("manifest", Refusal::ManifestVersionLower(ours, theirs))
            .at(self.session.api.address())
    }

    /// Makes the next manifest's version higher than that of any manifest that nodes hold, even if
    /// neither the control plane nor this home has seen that one: changes that only such a manifest
    /// made are undone.
    ///
    /// # Errors
    /// The control plane cannot be reached.
    pub async fn sign_over_nodes(&mut self) -> Result<(), Error> {
        let ours = self.manifest().map_or(0, |manifest| manifest.version);
        let status = self.status().await?;
        let known = ours.max(status.manifest_version.unwrap_or(0));
        for node in &status.nodes {
            let Some(held) = node.manifest_version.filter(|held| *held > known) else {
                continue;
            };
            let output = self.session.cx.output;
            if held - known > MAX_JUMP {
                output.warn(&format!(
                    "node {} is said to hold manifest {held}, more than {MAX_JUMP} above manifest \
                     {known}, the newest that is known: it is left alone; compare with the node's \
                     own status",
                    node.node
                ));
                continue;
            }
            output.warn(&format!(
                "signing above manifest {held} of node {}: what only that manifest changed is \
                 undone",
                node.node
            ));
            self.held_by_nodes = self.held_by_nodes.max(held);
        }
        Ok(())
    }

    /// Uploads a manifest, together with the listed objects that the control plane has lost.
    pub(super) async fn hand_in(
        &mut self,
        envelope: &Envelope,
        objects: &ObjectMap,
    ) -> Result<HandedIn, Error> {
        let path = format!("/v1/tenants/{}/manifest", self.id);
        let mut uploaded = BTreeSet::new();
        loop {
            let api = &mut self.session.api;
            let answer = api
                .send_json::<ManifestAnswer>(Method::PUT, &path, envelope)
                .await;
            let Err(error) = answer else {
                return Ok(HandedIn::Taken);
            };
            match error.remote_code() {
                Some(code::OBJECTS_MISSING) if uploaded.insert(code::OBJECTS_MISSING) => {
                    for (digest, bytes) in objects {
                        self.put_object(digest, bytes.clone()).await?;
                    }
                }
                Some(code::BUNDLE_MISSING) if uploaded.insert(code::BUNDLE_MISSING) => {
                    let lost = self.upload_lost(objects).await?;
                    if !lost.is_empty() {
                        return Ok(HandedIn::Lacks(lost));
                    }
                }
                _ => return Err(error),
            }
        }
    }

    /// Uploads the bundles of these releases that the control plane lacks; returns those that this
    /// home lacks too.
    async fn upload_lost(&mut self, objects: &ObjectMap) -> Result<Vec<Digest>, Error> {
        let releases = objects
            .values()
            .filter_map(|bytes| Release::parse(bytes).ok());
        let bundles: BTreeSet<Digest> = releases.map(|release| release.bundle.digest).collect();
        let mut lost = Vec::new();
        for digest in bundles {
            let path = format!("/v1/bundles/{digest}");
            if self.session.api.has(&path).await? {
                continue;
            }
            match bundle_cache::load(&self.session.cx.home, &digest) {
                Some(bytes) => self.put_bundle(&digest, bytes).await?,
                None => lost.push(digest),
            }
        }
        Ok(lost)
    }

    /// Removes earlier releases from a draft if their bundles are lost everywhere.
    ///
    /// # Errors
    /// A release that is to run has no bundle.
    pub(super) fn leave_out(
        &self,
        draft: &mut Draft,
        objects: &ObjectMap,
        lost: &BTreeSet<Digest>,
    ) -> Result<(), Error> {
        let bundle = |release: &Digest| {
            let release = Release::parse(objects.get(release)?).ok()?;
            Some(release.bundle.digest)
        };
        let is_lost =
            |release: &Digest| bundle(release).is_some_and(|bundle| lost.contains(&bundle));
        for (name, wanted) in &mut draft.functions {
            if is_lost(&wanted.release) {
                return Err(Error::new(
                    Code::NotFound,
                    format!(
                        "the control plane has lost the bundle of {name}, and this home does \
                         not keep it"
                    ),
                    format!(
                        "run `casemate deploy` in the project of {name}, or \
                         `casemate remove {name}`; nothing was changed"
                    ),
                )
                .at(format!("release {}", wanted.release)));
            }
            let before = wanted.fallbacks.len();
            wanted.fallbacks.retain(|release| !is_lost(release));
            if wanted.fallbacks.len() < before {
                self.session.cx.output.warn(&format!(
                    "the control plane has lost the bundle of an earlier release of {name}, and \
                     this home does not keep it; `casemate rollback` can no longer select it"
                ));
            }
        }
        Ok(())
    }

    /// Keeps the bundles of the listed releases, the running ones first.
    pub(super) fn keep_bundles(&self, new: &BTreeMap<Digest, Bytes>) -> Result<(), Error> {
        let functions = || {
            self.manifest()
                .into_iter()
                .flat_map(|manifest| manifest.functions.values())
        };
        let running = functions().map(|wanted| &wanted.release);
        let earlier = functions().flat_map(|wanted| &wanted.fallbacks);
        let bundles = running.chain(earlier).filter_map(|release| {
            let release = self.release(release)?;
            Some(release.bundle.digest)
        });
        bundle_cache::keep(&self.session.cx.home, bundles, new)
    }
}
