//! The next manifest while it is being made.

use std::collections::BTreeMap;

use bytes::Bytes;
use casemate_trust::freshness::FreshnessDemand;
use casemate_trust::id::Digest;
use casemate_trust::name::{Identifier, Name};
use casemate_trust::note::Note;
use casemate_trust::release::Release;
use casemate_trust::secret::Secret;
use casemate_trust::statement::{EgressCeiling, MAX_FALLBACKS, Tenant, Wanted};

use crate::endpoint::bracketed;
use crate::error::{Code, Error};
use crate::memory::ObjectMap;
use crate::slot::put_command;

/// The next manifest while it is being made.
#[derive(Debug, Clone, Default)]
pub struct Draft {
    /// Functions.
    pub functions: BTreeMap<Name, Wanted>,
    /// Secrets.
    pub secrets: BTreeMap<Identifier, BTreeMap<Name, Digest>>,
    /// How long the manifest's credentials are used without a renewal.
    pub freshness: Option<FreshnessDemand>,
    /// The notes of the releases.
    pub notes: BTreeMap<Digest, Note>,
    /// Objects that are new.
    pub objects: ObjectMap,
    /// Bundles that are new.
    pub bundles: BTreeMap<Digest, Bytes>,
}

/// The error for hosts that the tenant may not use.
pub fn hosts_not_given(tenant: &Tenant, release: &Release) -> Option<Error> {
    let asked: Vec<_> = release
        .hosts_outside(tenant)
        .map(ToString::to_string)
        .collect();
    if asked.is_empty() {
        return None;
    }
    let allowed: Vec<_> = tenant.hosts.iter().map(ToString::to_string).collect();
    let add: String = asked.iter().map(|host| format!(" --add {host}")).collect();
    let next = format!(
        "use one of {} in `hosts`, or ask the operator: `casemate tenant hosts {}{add}`",
        allowed.join(", "),
        tenant.name
    );
    let (function, name) = (&release.function, &tenant.name);
    let what = match asked.as_slice() {
        [host] => format!("{function} asks for host {host}, which the tenant {name} was not given"),
        hosts => format!(
            "{function} asks for hosts that the tenant {name} was not given: {}",
            hosts.join(", ")
        ),
    };
    let lines = allowed.iter().map(|host| format!("allowed: {host}"));
    Some(Error::new(Code::Project, what, next).lines(lines))
}

/// The error for calls that a release declares beyond the operator's egress ceiling.
pub fn egress_not_given(
    tenant: &Tenant,
    ceiling: &EgressCeiling,
    release: &Release,
) -> Option<Error> {
    let outside = release.egress_outside(ceiling);
    let mut asked: Vec<_> = outside
        .map(|(host, port)| format!("{}:{port}", bracketed(host)))
        .collect();
    asked.sort();
    asked.dedup();
    if asked.is_empty() {
        return None;
    }
    let what = format!(
        "{} declares calls to {}, which the tenant {} may not make",
        release.function,
        asked.join(", "),
        tenant.name
    );
    let next = format!(
        "take it out of casemate.toml, or ask the operator, who adds it to the whole list with \
         `casemate tenant update {}`: `--egress-host` for hosts, `--egress-port` for ports",
        tenant.name
    );
    Some(Error::new(Code::Project, what, next).lines([format!("allowed: {ceiling}")]))
}

/// The error for limits over the tenant's ceilings.
pub fn limits_not_given(tenant: &Tenant, release: &Release) -> Option<Error> {
    let over: Vec<_> = release
        .limits_over(&tenant.ceilings)
        .map(|(limit, asked, allowed)| {
            format!("{limit} = {asked}; the tenant's ceiling is {allowed}")
        })
        .collect();
    let what = match over.as_slice() {
        [] => return None,
        [one] => format!("{} asks for {one}", release.function),
        many => format!(
            "{} asks for more than {} ceilings allow",
            release.function,
            many.len()
        ),
    };
    let lines = over.iter().filter(|_| over.len() > 1).cloned();
    let next = "lower it in casemate.toml, or ask the operator for more";
    Some(Error::new(Code::Project, what, next).lines(lines))
}

impl Draft {
    /// Let `release` run as `function`; the release that ran before becomes the first fallback.
    pub fn run(&mut self, function: &Name, release: Digest, pools: &[Name]) {
        let before = self.functions.remove(function);
        let mut fallbacks: Vec<Digest> = before
            .iter()
            .flat_map(|before| std::iter::once(&before.release).chain(&before.fallbacks))
            .filter(|digest| **digest != release)
            .copied()
            .collect();
        fallbacks.truncate(MAX_FALLBACKS);
        let wanted = Wanted {
            release,
            fallbacks,
            pools: pools.to_vec(),
        };
        self.functions.insert(function.clone(), wanted);
    }

    /// Check that everything that runs fits the limits of tenant and secrets; a fallback that does
    /// not fit is left out.
    ///
    /// # Errors
    /// A function does not fit: the error names what does not, and what would.
    pub(super) fn fit(
        &mut self,
        tenant: &Tenant,
        objects: &ObjectMap,
    ) -> Result<Vec<String>, Error> {
        let release = |digest: &Digest| Release::parse(objects.get(digest)?).ok();
        let secret = |digest: &Digest| Secret::parse(objects.get(digest)?).ok();
        let secrets = &self.secrets;
        let misfit = |release: &Release| {
            if let Some(error) = hosts_not_given(tenant, release) {
                return Some(error);
            }
            if let Some(error) = limits_not_given(tenant, release) {
                return Some(error);
            }
            for slot in &release.credentials {
                let sealed = secrets
                    .get(&slot.secret)
                    .into_iter()
                    .flat_map(BTreeMap::values);
                for sealed in sealed.filter_map(secret) {
                    if let Some(message) = slot.widens(&sealed.place.limits) {
                        let what = format!(
                            "the slot {} of {}: {message}",
                            slot.binding, release.function
                        );
                        let next = format!(
                            "narrow the slot in casemate.toml, or seal the secret for more: \
                             `{} ...`",
                            put_command(slot)
                        );
                        return Some(Error::new(Code::Project, what, next));
                    }
                }
            }
            None
        };
        let mut warnings = Vec::new();
        for (name, wanted) in &mut self.functions {
            if let Some(error) = release(&wanted.release).as_ref().and_then(misfit) {
                return Err(error);
            }
            let before = wanted.fallbacks.len();
            wanted
                .fallbacks
                .retain(|digest| release(digest).is_some_and(|release| misfit(&release).is_none()));
            if wanted.fallbacks.len() < before {
                warnings.push(format!(
                    "an earlier release of {name} exceeds the tenant's or a secret's limits; \
                     `casemate rollback` can no longer select it"
                ));
            }
        }
        Ok(warnings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_earlier_release_becomes_the_first_fallback_once() {
        let (name, pools) = ("web".parse::<Name>().unwrap(), ["main".parse().unwrap()]);
        let mut draft = Draft::default();
        for byte in [1, 2, 3, 2, 2] {
            draft.run(&name, Digest([byte; 32]), &pools);
        }
        let wanted = &draft.functions[&name];
        assert_eq!(wanted.release, Digest([2; 32]));
        assert_eq!(wanted.fallbacks, [Digest([3; 32]), Digest([1; 32])]);
        for byte in 10..40 {
            draft.run(&name, Digest([byte; 32]), &pools);
        }
        assert_eq!(draft.functions[&name].fallbacks.len(), MAX_FALLBACKS);
    }
}
