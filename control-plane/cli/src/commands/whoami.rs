//! `casemate whoami`.

use serde_json::json;

use crate::args::Whose;
use crate::error::Error;
use crate::keys::{ROOT, TENANT};
use crate::session::{Context, Session};

/// `casemate whoami`
pub(super) async fn whoami(cx: &Context, whose: &Whose) -> Result<(), Error> {
    let mut session = Session::open(cx).await?;
    let public = cx.keys().tenant_public()?.filter(|_| cx.keys().has(TENANT));
    // An operator's home acts for no tenant unless a tenant is named.
    let tenant = if whose.tenant.is_none() && public.is_none() && cx.keys().has(ROOT) {
        None
    } else {
        let id = session.own_tenant(whose.tenant.as_ref()).await?;
        Some(session.read_tenant(id).await?.0)
    };
    let signs = tenant
        .as_ref()
        .zip(public)
        .is_some_and(|(tenant, key)| tenant.current.keys.contains(&key));
    let fingerprint = public.map(|key| key.fingerprint().to_string());
    let result = json!({
        "home": cx.home.path(),
        "url": session.api.address().to_string(),
        "fleet": session.fleet(),
        "control_version": session.view.version,
        "version": env!("CARGO_PKG_VERSION"),
        "tenant": tenant.as_ref().map(|tenant| &tenant.name),
        "tenant_id": tenant.as_ref().map(|tenant| tenant.id),
        "key": fingerprint,
        "signs_for_tenant": signs,
        "has_root": cx.keys().has(ROOT),
    });
    cx.output.result(&result, || {
        let mut lines = vec![
            format!("home           {}", cx.home.path().display()),
            format!(
                "control plane  {} (version {})",
                session.api.address(),
                session.view.version
            ),
            format!("fleet          {}", session.fleet()),
        ];
        match &tenant {
            Some(tenant) => lines.push(format!("tenant         {} ({})", tenant.name, tenant.id)),
            None => lines.push("tenant         none: this home is the operator's".to_owned()),
        }
        if let Some(fingerprint) = &fingerprint {
            let signs = if signs {
                "signs for the tenant"
            } else {
                "does not sign for the tenant"
            };
            lines.push(format!("key            {fingerprint} ({signs})"));
        }
        if cx.keys().has(ROOT) {
            lines.push("root           the fleet's root key is in this home".to_owned());
        }
        lines.join("\n")
    })
}
