//! `casemate expiry`: everything that expires, in one list.

use casemate_api::node::{NodeList, NodeView};
use casemate_api::token::{Scope, TokenList, TokenView};
use casemate_trust::Seconds;
use casemate_trust::join::TokenRecord;
use casemate_trust::judge::Standing;
use serde_json::{Value, json};

use super::nodes;
use crate::error::{Code, Error};
use crate::expiry::{Expiry, Who, of_fleet, of_tenant};
use crate::machine::{DAY, date, now, printable};
use crate::output::table;
use crate::session::{Context, Session, WARN_BEFORE};
use crate::tenancy::Tenancy;

/// `casemate expiry`
pub(super) async fn expiry(cx: &Context) -> Result<(), Error> {
    let mut found = if looks_at_everything(cx).await? {
        of_operator(&mut Session::open(cx).await?).await?
    } else {
        of_tenants_home(cx).await?
    };
    found.sort_by(|one, other| {
        (one.expires, one.kind, &one.name).cmp(&(other.expires, other.kind, &other.name))
    });
    let now = now();
    let listed: Vec<Value> = found.iter().map(|item| as_json(item, now)).collect();
    cx.output.result(&listed, || {
        let rows: Vec<_> = found.iter().map(|item| row(item, now)).collect();
        table(
            &["WHAT", "NAME", "EXPIRES", "LEFT", "RENEWED BY", "HOW"],
            &rows,
        )
    })
}

/// Whether this home is an operator's, with or without the root.
async fn looks_at_everything(cx: &Context) -> Result<bool, Error> {
    if cx.is_operator() {
        return Ok(true);
    }
    let own = own_token(&mut Session::open(cx).await?).await?;
    Ok(own.is_some_and(|own| !matches!(own.scope, Scope::Tenant(_))))
}

/// The token of this home; `None` at a control plane whose version does not offer this request.
async fn own_token(session: &mut Session<'_>) -> Result<Option<TokenView>, Error> {
    match session.api.get::<TokenView>("/v1/token").await {
        Err(error) if error.code() == Code::NotFound => Ok(None),
        own => own.map(Some),
    }
}

fn as_json(item: &Expiry, now: Seconds) -> Value {
    let mut value = json!(item);
    value["left_days"] = json!(item.expires.saturating_sub(now).div_ceil(DAY));
    value["expired"] = json!(item.expires <= now);
    value
}

fn row(item: &Expiry, now: Seconds) -> Vec<String> {
    let left = match item.expires.checked_sub(now) {
        None | Some(0) => "EXPIRED".to_owned(),
        Some(left) if left < 3600 => "within the hour".to_owned(),
        Some(left) if left < DAY => format!("{} hours (!)", left.div_ceil(3600)),
        Some(left) if left < WARN_BEFORE => format!("{} days (!)", left.div_ceil(DAY)),
        Some(left) => format!("{} days", left.div_ceil(DAY)),
    };
    let by = match item.by {
        Who::Operator => "operator",
        Who::Tenant => "tenant",
    };
    vec![
        item.kind.to_owned(),
        item.name.clone(),
        date(item.expires),
        left,
        by.to_owned(),
        item.how.clone(),
    ]
}

/// Everything that the operator's home knows, and what the control plane reports of the rest.
async fn of_operator(session: &mut Session<'_>) -> Result<Vec<Expiry>, Error> {
    let pools = session.read_pools().await?;
    let mut found = of_fleet(&session.known);
    let judge = session.known.judge();
    let images = judge.images().map(|(pool, image)| {
        let how = "After that, machines that do not run the image yet refuse it; build and push \
        the next image.";
        Expiry::operators(
            "image",
            format!("{} of pool {pool}", image.version),
            image.expires,
            how,
        )
    });
    found.extend(images);
    let known: Vec<_> = judge.tenants().map(|(id, _)| *id).collect();
    for summary in session.list_tenants().await? {
        let name = printable(summary.name.as_str());
        if !known.contains(&summary.id) {
            let how = "Another home has signed the statement: renew it there with `casemate tenant \
            update`.";
            found.push(Expiry::operators("tenant", &name, summary.expires, how));
        }
        if let Some(expires) = summary.manifest_expires {
            let how = "The tenant signs the manifest again: `casemate renew`.";
            found.push(Expiry::tenants("manifest", &name, expires, how));
        }
    }
    let list: TokenList = session.api.get("/v1/tokens").await?;
    found.extend(list.tokens.iter().filter_map(token));
    let waiting: Vec<TokenRecord> = session
        .cx
        .home
        .read_json(nodes::TOKENS)?
        .unwrap_or_default();
    for record in waiting.iter().filter(|record| record.used_by.is_none()) {
        let how = format!(
            "Make another token when a node needs it: `casemate node token {}`.",
            record.node
        );
        found.push(Expiry::operators(
            "join token",
            &record.node,
            record.expires,
            how,
        ));
    }
    of_nodes(session, &mut found, |pool| {
        let epochs = pools.pools.iter().find(|view| view.name == *pool);
        epochs.map(|view| (view.epoch, view.expires))
    })
    .await?;
    Ok(found)
}

/// Certificates and grants of the nodes. A grant holds as long as its pool key, and a node without
/// the newest one cannot open secrets once the earlier one expires.
async fn of_nodes(
    session: &mut Session<'_>,
    found: &mut Vec<Expiry>,
    newest: impl Fn(&casemate_trust::name::Name) -> Option<(u64, Seconds)>,
) -> Result<(), Error> {
    let list: NodeList = session.api.get("/v1/nodes").await?;
    for node in list.nodes {
        let expires = node
            .health
            .as_ref()
            .and_then(|health| health.certificate_expires);
        if let Some(expires) = expires {
            let how = "Renew the first certificate on the node.";
            found.push(Expiry::operators("certificate", &node.name, expires, how));
        }
        let Some((epoch, _)) = newest(&node.pool) else {
            continue;
        };
        let view: NodeView = match session.api.get(&format!("/v1/nodes/{}", node.name)).await {
            Err(error) if error.code() == Code::NotFound => continue,
            view => view?,
        };
        let Some(held) = view.grants.iter().max() else {
            continue;
        };
        let pool = session.known.judge().pool(&node.pool, *held);
        let Some(expires) = pool.map(|pool| pool.expires) else {
            continue;
        };
        let how = if *held < epoch {
            "The node lacks the pool's newest key: run `casemate fleet publish`."
        } else {
            "The node gets the pool's next key with `casemate pool rotate`."
        };
        let name = format!("{} for pool {}, epoch {held}", node.name, node.pool);
        found.push(Expiry::operators("grant", name, expires, how));
    }
    Ok(())
}

fn token(token: &TokenView) -> Option<Expiry> {
    let name = format!("{} ({})", printable(&token.id), printable(&token.label));
    let how = "Make another token with `casemate token create`, and log in with it.";
    Some(Expiry::operators("token", name, token.expires?, how))
}

/// Everything that a tenant's home depends on.
async fn of_tenants_home(cx: &Context) -> Result<Vec<Expiry>, Error> {
    let mut tenancy = Tenancy::open(cx, None).await?;
    let pools = tenancy.session.read_pools().await?;
    let judge = tenancy.session.known.judge();
    let fleet = of_fleet(&tenancy.session.known);
    let is_shown = |pool: &str| pools.pools.iter().any(|view| view.name.as_str() == pool);
    let mut found: Vec<_> = fleet
        .into_iter()
        .filter(|item| match item.kind {
            "tenant" => false,
            "pool" => is_shown(&item.name),
            _ => true,
        })
        .collect();
    found.extend(judge.tenant(&tenancy.id).map(of_tenant));
    if let Some(manifest) = tenancy.manifest() {
        let (name, how) = (
            &tenancy.tenant.name,
            "Sign the manifest again: `casemate renew`.",
        );
        found.push(Expiry::tenants("manifest", name, manifest.expires, how));
        let version = manifest.version;
        if let Standing::Fresh(until) = tenancy.standing() {
            let how = "Run `casemate freshness renew`, or repair the job that does.";
            found.push(Expiry::tenants(
                "freshness",
                format!("manifest {version}"),
                until,
                how,
            ));
        }
    }
    let own = own_token(&mut tenancy.session).await?;
    found.extend(own.as_ref().and_then(token));
    Ok(found)
}
