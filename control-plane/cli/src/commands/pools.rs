//! `casemate pool`.

use casemate_trust::keyfile::Purpose;
use casemate_trust::name::Name;
use casemate_trust::statement::Statement as _;
use serde_json::json;

use super::{fleet::new_pool, nodes};
use crate::args::{PoolAdd, PoolRotate};
use crate::error::{Code, Error};
use crate::keys::{ROOT, pool_file};
use crate::machine::{DAY, date, now, short};
use crate::output::table;
use crate::session::{Context, Session};

/// `casemate pool list`
pub(super) async fn list(cx: &Context) -> Result<(), Error> {
    let mut session = Session::open(cx).await?;
    let list = session.read_pools().await?;
    cx.output.result(&list.pools, || {
        let rows: Vec<_> = list
            .pools
            .iter()
            .map(|pool| {
                let key = session.known.judge().newest_pool(&pool.name);
                vec![
                    pool.name.to_string(),
                    pool.epoch.to_string(),
                    pool.nodes.to_string(),
                    date(pool.expires),
                    key.map(|pool| short(&pool.public_key.fingerprint()))
                        .unwrap_or_default(),
                ]
            })
            .collect();
        table(&["POOL", "EPOCH", "NODES", "EXPIRES", "KEY"], &rows)
    })
}

/// `casemate pool add`
pub(super) async fn add(cx: &Context, args: &PoolAdd) -> Result<(), Error> {
    let mut session = Session::open(cx).await?;
    session.read_pools().await?;
    if session.known.judge().newest_pool(&args.name).is_some() {
        return Err(Error::new(
            Code::Exists,
            format!("the pool {} exists already", args.name),
            "choose another name, or make a new key for it with `casemate pool rotate`",
        ));
    }
    sign(&mut session, &args.name, 1, args.lifetime.expires_days).await?;
    cx.output
        .result(&json!({ "pool": args.name, "epoch": 1 }), || {
            format!("pool {} is made", args.name)
        })
}

/// `casemate pool rotate`
pub(super) async fn rotate(cx: &Context, args: &PoolRotate) -> Result<(), Error> {
    let mut session = Session::open(cx).await?;
    session.read_pools().await?;
    let held = session.known.judge().newest_pool(&args.name);
    let epoch = held.map(|pool| pool.epoch + 1).ok_or_else(|| {
        Error::new(
            Code::NotFound,
            format!("there is no pool {}", args.name),
            "`casemate pool list` shows the pools of the fleet; `casemate pool add` makes one",
        )
    })?;
    sign(&mut session, &args.name, epoch, args.lifetime.expires_days).await?;
    let granted = nodes::grant_missing(&mut session, Some(&args.name)).await?;
    let result = json!({
        "pool": args.name,
        "epoch": epoch,
        "grants": granted.len(),
        "nodes": granted,
    });
    // The nodes are listed by name: the operator sees whether an unexpected one is among them.
    cx.output.result(&result, || {
        let names: Vec<_> = granted.iter().map(Name::as_str).collect();
        let given = match names.len() {
            0 => "no node received it".to_owned(),
            _ => format!("given to {}", names.join(", ")),
        };
        format!("pool {} has a new key, epoch {epoch}; {given}", args.name)
    })?;
    cx.output.hint(
        "Secrets that tenants put from now on are sealed to the new key; earlier secrets open \
         until the old key expires.",
    );
    Ok(())
}

async fn sign(session: &mut Session<'_>, name: &Name, epoch: u64, days: u32) -> Result<(), Error> {
    let cx = session.cx;
    let root = cx.root_key()?;
    let protection = cx.keys().same_protection(ROOT, Purpose::FleetRoot)?;
    let issued = session.known.judge().time(now());
    let expires = issued + u64::from(days) * DAY;
    let (pool, seed) = new_pool(session.fleet(), name.clone(), epoch, (issued, expires))?;
    // The private half is on the disk before a tenant can seal to the public one.
    let file = pool_file(name, epoch);
    cx.keys().create(&file, Purpose::Pool, &seed, &protection)?;
    session.publish(&pool.sign(&[&root])).await?;
    Ok(())
}
