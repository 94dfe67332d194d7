//! `casemate tenant rekey`, `casemate tenant remove`: a tenant's keys are replaced, or removed.

use casemate_api::token::{Scope, TokenList};
use casemate_trust::host::HostPattern;
use casemate_trust::key::{PublicKey, SigningKey};
use casemate_trust::keyfile::Purpose;
use casemate_trust::statement::{
    Ceilings, EgressCeiling, KeySet, MIN_MEMORY_MIB, Statement as _, Tenant,
};
use serde_json::json;

use super::confirm::confirm;
use super::tokens;
use crate::args::{TenantRekey, TenantRemove};
use crate::error::{Code, Error};
use crate::keys::{TENANT, TENANT_PUBLIC};
use crate::machine::{DAY, now, random};
use crate::session::{Context, Session};
use crate::tenancy::Tenancy;

/// The only host that a removed tenant's functions may call: no name below `.invalid` exists (RFC
/// 2606).
const NOWHERE: &str = "removed.invalid";
/// How long the statement of a removed tenant holds, days: longer than any of its statements that
/// nodes may still hold.
const REMOVED_DAYS: u64 = 3650;

/// `casemate tenant rekey`
pub(super) async fn rekey(cx: &Context, args: &TenantRekey) -> Result<(), Error> {
    match (&args.name, cx.is_operator()) {
        (Some(_), true) => by_operator(cx, args).await,
        (None, true) => Err(Error::new(
            Code::Usage,
            "whose keys are to be replaced?",
            "name the tenant: `casemate tenant rekey NAME --key PUBLIC_KEY`",
        )),
        _ => by_tenant(cx, args).await,
    }
}

/// The root replaces the keys: for a tenant that has lost its keys, or too many of them.
async fn by_operator(cx: &Context, args: &TenantRekey) -> Result<(), Error> {
    if args.keys.is_empty() {
        return Err(Error::new(
            Code::Usage,
            "expected the tenant's new public key",
            "the tenant makes it with `casemate tenant key` in a new home; give it with \
             `--key PUBLIC_KEY`, once for each",
        ));
    }
    let root = cx.root_key()?;
    let mut session = Session::open(cx).await?;
    let id = match &args.name {
        Some(name) => session.tenant_id(name).await?,
        None => session.own_tenant(None).await?,
    };
    let (mut tenant, _) = session.read_tenant(id).await?;
    let before = tenant.current.clone();
    let judge = session.known.judge();
    tenant.issued = judge.time(now());
    change(&mut tenant, args, &args.keys)?;
    session.publish(&tenant.sign(&[&root])).await?;
    told(cx, &tenant, &before)?;
    cx.output.hint(&format!(
        "The tenant logs in from the home with the new key and runs `casemate renew`: nodes that \
         join from now on accept nothing that the earlier keys have signed. If they were stolen, \
         take its API tokens away too: `casemate token list`, `casemate token revoke`. What \
         thieves have deployed with them shows in `casemate audit`; the tenant's next deployment \
         undoes it ({}).",
        tenant.name
    ));
    Ok(())
}

/// The tenant replaces its keys, signed with as many of the earlier keys as must sign.
async fn by_tenant(cx: &Context, args: &TenantRekey) -> Result<(), Error> {
    let mut tenancy = Tenancy::open(cx, args.name.as_ref()).await?;
    let keys = cx.keys();
    // The command was interrupted between the signature and the change of files: the rest is done
    // now.
    let is_own = args.keys.is_empty();
    let next = match is_own {
        true => Some(keys.next((TENANT, Purpose::Tenant))?),
        false => None,
    };
    let wanted: Vec<PublicKey> = match &next {
        Some(next) => replaced(&tenancy.tenant, keys.tenant_public()?, next),
        None => args.keys.clone(),
    };
    let before = tenancy.tenant.current.clone();
    let is_signed = next
        .as_ref()
        .is_some_and(|next| before.keys.contains(&next.public()));
    if !is_signed {
        let signers = tenancy.signers(&args.with_keys)?;
        let mut tenant = tenancy.tenant.clone();
        tenant.issued = tenancy.session.known.judge().time(now());
        change(&mut tenant, args, &wanted)?;
        let signed = tenant.sign(&signers.iter().collect::<Vec<_>>());
        tenancy.session.publish(&signed).await?;
        tenancy.tenant = tenant;
    }
    if let Some(next) = &next {
        let kept = keys.promote((TENANT, TENANT_PUBLIC), &next.public())?;
        cx.output.done(&format!(
            "the key is replaced; the earlier one is kept as {}",
            kept.display()
        ));
    }
    told(cx, &tenancy.tenant, &before)?;
    cx.output.hint(
        "Now `casemate renew` in a home with the new keys: nodes that join from now on accept \
         nothing that the earlier keys have signed. If a key was stolen, ask the operator to \
         revoke the API tokens that were stored with it.",
    );
    Ok(())
}

/// The tenant's keys with this home's replaced.
fn replaced(tenant: &Tenant, own: Option<PublicKey>, next: &SigningKey) -> Vec<PublicKey> {
    let keys = tenant.current.keys.iter().copied();
    let mut keys: Vec<_> = keys.filter(|key| Some(*key) != own).collect();
    if !keys.contains(&next.public()) {
        keys.push(next.public());
    }
    keys
}

fn change(tenant: &mut Tenant, args: &TenantRekey, keys: &[PublicKey]) -> Result<(), Error> {
    tenant.version += 1;
    tenant.current = KeySet {
        keys: keys.to_vec(),
        threshold: args
            .threshold
            .unwrap_or(tenant.current.threshold.min(keys.len() as u32)),
    };
    tenant.flaw().map_or(Ok(()), |flaw| {
        Err(Error::new(
            Code::Usage,
            flaw,
            "correct the options and run the command again",
        ))
    })
}

fn told(cx: &Context, tenant: &Tenant, before: &KeySet) -> Result<(), Error> {
    let current = &tenant.current;
    let gone: Vec<_> = before
        .keys
        .iter()
        .filter(|key| !current.keys.contains(key))
        .collect();
    let result = json!({
        "tenant": tenant.name,
        "version": tenant.version,
        "keys": current.keys,
        "threshold": current.threshold,
        "removed": gone,
    });
    cx.output.result(&result, || {
        let keys = current
            .keys
            .iter()
            .map(|key| format!("key        {key}  {}", key.fingerprint()));
        let gone = gone
            .iter()
            .map(|key| format!("no longer  {key}  {}", key.fingerprint()));
        let head = format!(
            "tenant     {} (version {}), {} of {} keys sign",
            tenant.name,
            tenant.version,
            current.threshold,
            current.keys.len()
        );
        let lines: Vec<_> = std::iter::once(head).chain(keys).chain(gone).collect();
        lines.join("\n")
    })
}

/// `casemate tenant remove`
pub(super) async fn remove(cx: &Context, args: &TenantRemove) -> Result<(), Error> {
    let root = cx.root_key()?;
    confirm(args.yes, "remove the tenant", args.name.as_str())?;
    let mut session = Session::open(cx).await?;
    let id = session.tenant_id(&args.name).await?;
    let (mut tenant, _) = session.read_tenant(id).await?;
    // The private half is dropped when this function returns: nothing more can be signed for the
    // tenant.
    let nobody = SigningKey::generate(&mut random)
        .map_err(|error| Error::internal("no key could be made").source(error))?;
    tenant.version += 1;
    tenant.issued = session.known.judge().time(now());
    tenant.expires = tenant.issued + REMOVED_DAYS * DAY;
    tenant.current = KeySet::single(nobody.public());
    tenant.hosts = Vec::new();
    tenant.ceilings = Ceilings {
        memory_mib: MIN_MEMORY_MIB,
        ..tenant.ceilings
    };
    tenant.egress = Some(nowhere()?);
    session.publish(&tenant.sign(&[&root])).await?;
    let list: TokenList = session.api.get("/v1/tokens").await?;
    let own = list
        .tokens
        .iter()
        .filter(|token| token.scope == Scope::Tenant(id));
    let mut revoked = Vec::new();
    for token in own {
        tokens::take_away(&mut session, &token.id).await?;
        revoked.push(token.id.clone());
    }
    let result =
        json!({ "removed": tenant.name, "version": tenant.version, "revoked_tokens": revoked });
    cx.output.result(&result, || {
        format!(
            "tenant {} is removed: no host leads to its functions, they may call nowhere, nobody \
             can sign for it, and {} API tokens are revoked",
            tenant.name,
            revoked.len()
        )
    })?;
    cx.output.hint(
        "Its hosts are free for other tenants. The statement says so to every node, also to those \
         that are away now; the name stays taken.",
    );
    Ok(())
}

fn nowhere() -> Result<EgressCeiling, Error> {
    let host: HostPattern = NOWHERE
        .parse()
        .map_err(|error| Error::internal("a constant host is a host name").source(error))?;
    Ok(EgressCeiling {
        hosts: vec![host],
        ..EgressCeiling::default()
    })
}

/// Whether a tenant's statement is that of a removed one.
pub(super) fn is_removed(tenant: &Tenant) -> bool {
    let nowhere =
        |ceiling: &EgressCeiling| ceiling.hosts.iter().all(|host| host.to_string() == NOWHERE);
    let egress = tenant.egress.as_ref();
    tenant.hosts.is_empty()
        && egress.is_some_and(|ceiling| !ceiling.hosts.is_empty() && nowhere(ceiling))
}
