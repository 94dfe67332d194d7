//! Hosts that no other tenant has.

use std::collections::BTreeSet;

use casemate_api::tenant::TenantSummary;
use casemate_trust::host::HostPattern;
use casemate_trust::id::TenantId;
use casemate_trust::judge::Judge;
use casemate_trust::name::Name;

use crate::error::{Code, Error};

/// Refuses hosts that another tenant has. The statements that this home has signed decide first, so
/// that the control plane cannot hide a tenant; its list is used too, for tenants that another home
/// has signed.
pub(super) fn require_free(
    judge: &Judge,
    listed: &[TenantSummary],
    tenant: &TenantId,
    hosts: &[HostPattern],
) -> Result<(), Error> {
    let mut taken = BTreeSet::new();
    let mut compare = |name: &Name, theirs: &HostPattern, source: &str| {
        for host in hosts.iter().filter(|host| host.overlaps(theirs)) {
            taken.insert(format!(
                "host {host}: tenant {name} has {theirs} ({source})"
            ));
        }
    };
    for (_, state) in judge.tenants().filter(|(id, _)| *id != tenant) {
        for theirs in &state.tenant.hosts {
            compare(&state.tenant.name, theirs, "signed, known to this home");
        }
    }
    let known = |id: &TenantId| judge.tenant(id).is_some();
    let unknown = listed.iter().filter(|other| other.id != *tenant);
    for other in unknown.filter(|other| !known(&other.id)) {
        for theirs in other.hosts.iter().filter_map(|host| host.parse().ok()) {
            compare(&other.name, &theirs, "listed by the control plane");
        }
    }
    if taken.is_empty() {
        return Ok(());
    }
    Err(Error::new(
        Code::Exists,
        "another tenant may answer for this host already",
        "name another host, or remove it from that tenant first: `casemate tenant hosts NAME \
         --remove HOST`",
    )
    .lines(taken))
}

#[cfg(test)]
mod tests {
    use casemate_trust::id::FleetId;
    use casemate_trust::key::SigningKey;
    use casemate_trust::statement::{KeySet, Root, Statement as _, Tenant};

    use super::*;
    use crate::memory::tests::accept;

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_seed(&[seed; 32]).unwrap()
    }

    #[test]
    fn a_host_is_refused_even_if_the_control_plane_hides_its_tenant() {
        let root = Root {
            version: 1,
            keys: vec![key(1).public()],
            threshold: 1,
            issued: 1,
            expires: 9000,
        };
        let root = root.sign(&[&key(1)]);
        let mut judge = Judge::new(FleetId(root.payload_digest().0), None);
        accept(&mut judge, &root);
        let tenant = Tenant::first(
            judge.fleet(),
            "shop".parse().unwrap(),
            KeySet::single(key(2).public()),
            vec!["*.shop.test".parse().unwrap()],
            1,
            9000,
        );
        accept(&mut judge, &tenant.sign(&[&key(1)]));
        let other = TenantId([7; 32]);
        let hosts = |host: &str| [host.parse::<HostPattern>().unwrap()];
        let taken = require_free(&judge, &[], &other, &hosts("a.shop.test")).unwrap_err();
        let text = taken.to_text();
        assert!(text.contains("tenant shop has *.shop.test"), "{text}");
        assert!(require_free(&judge, &[], &tenant.id, &hosts("a.shop.test")).is_ok());
        assert!(require_free(&judge, &[], &other, &hosts("a.b.shop.test")).is_ok());
    }
}
