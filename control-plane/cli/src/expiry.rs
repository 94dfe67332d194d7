//! Lists the objects that this home knows and that expire.

use casemate_trust::Seconds;
use casemate_trust::judge::TenantState;
use serde::Serialize;

use crate::memory::Known;

/// The person who renews an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Who {
    /// The holder of the fleet's root.
    Operator,
    /// The tenant.
    Tenant,
}

/// An object that expires.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Expiry {
    /// Its kind, such as `pool`.
    pub kind: &'static str,
    /// The object's name; empty where only one of its kind exists.
    pub name: String,
    /// The time from which on it is invalid, Unix time.
    pub expires: Seconds,
    /// The person who renews it.
    pub by: Who,
    /// How it is renewed, as a sentence.
    pub how: String,
}

impl Expiry {
    /// An object that the operator renews.
    pub fn operators(
        kind: &'static str,
        name: impl ToString,
        expires: Seconds,
        how: impl Into<String>,
    ) -> Self {
        Self {
            kind,
            name: name.to_string(),
            expires,
            by: Who::Operator,
            how: how.into(),
        }
    }

    /// An object that the tenant renews.
    pub fn tenants(
        kind: &'static str,
        name: impl ToString,
        expires: Seconds,
        how: impl Into<String>,
    ) -> Self {
        Self {
            by: Who::Tenant,
            ..Self::operators(kind, name, expires, how)
        }
    }

    /// The object as part of a sentence.
    pub fn what(&self) -> String {
        match (self.kind, self.name.as_str()) {
            ("root", _) => "the fleet's root".to_owned(),
            ("online key", _) => "the control plane's online key".to_owned(),
            ("pool", name) => format!("the key of pool {name}"),
            ("tenant", name) => format!("the statement of tenant {name}"),
            (kind, name) => format!("the {kind} {name}"),
        }
    }
}

/// The objects that only the root renews: root, online key, newest pool keys, tenants' statements.
pub fn of_fleet(known: &Known) -> Vec<Expiry> {
    let judge = known.judge();
    let root = judge.root().map(|root| {
        let how = "Sign the next root with it: `casemate fleet rotate-root`.";
        Expiry::operators("root", "", root.expires, how)
    });
    let online = judge.online().map(|online| {
        let how = "Sign it again: `casemate fleet online`, then `casemate fleet publish`.";
        Expiry::operators("online key", "", online.expires, how)
    });
    let pools = judge.pools().map(|pool| {
        let how = format!("Make a new one: `casemate pool rotate {}`.", pool.name);
        Expiry::operators("pool", &pool.name, pool.expires, how)
    });
    let tenants = judge.tenants().map(|(_, state)| of_tenant(state));
    let fleet = root.into_iter().chain(online).chain(pools);
    fleet.chain(tenants).collect()
}

/// A tenant's statement.
pub fn of_tenant(state: &TenantState) -> Expiry {
    let tenant = &state.tenant;
    let how = format!("Sign it again: `casemate tenant update {}`.", tenant.name);
    Expiry::operators("tenant", &tenant.name, tenant.expires, how)
}
