//! `casemate fleet`, `casemate fingerprint`.

use std::path::Path;

use casemate_api::fleet::PublicKeys;
use casemate_trust::id::FleetId;
use casemate_trust::key::{SEED_BYTES, SealingKey, SigningKey};
use casemate_trust::keyfile::Purpose;
use casemate_trust::statement::{OnlineKey, Pool, Root, Statement as _};
use serde_json::json;
use zeroize::Zeroizing;

use super::{compare, images, nodes};
use crate::args::{FleetInit, FleetOnline, FleetPublish};
use crate::error::{Code, Error};
use crate::keys::{ROOT, pool_file};
use crate::machine::{DAY, now, random};
use crate::memory::Known;
use crate::session::{Connection, Context, Session};

/// How long a root holds, days: it is replaced by signing the next root with it, which needs a
/// plan, not a reminder.
pub(super) const ROOT_DAYS: u64 = 3650;
/// Largest file of public keys, bytes.
const MAX_PUBLIC_BYTES: usize = 16 * 1024;

/// `casemate fleet init`
pub(super) fn init(cx: &Context, args: &FleetInit) -> Result<(), Error> {
    let control = control_keys(&args.control_public)?;
    let _lock = cx.home.lock()?;
    if cx.keys().has(ROOT) || Known::load(&cx.home)?.is_some() {
        return Err(Error::new(
            Code::Exists,
            "this home already belongs to a fleet",
            "keep it; to make another fleet use another home: `casemate --home DIR fleet init ...`",
        )
        .at(cx.home.path().display()));
    }
    let protection = cx
        .keys()
        .protection(args.new_key.plain_keys, "fleet's root key")?;
    let key = SigningKey::generate(&mut random)
        .map_err(|error| Error::internal("no key could be made").source(error))?;
    let issued = now();
    let root = Root {
        version: 1,
        keys: vec![key.public()],
        threshold: 1,
        issued,
        expires: issued + ROOT_DAYS * DAY,
    };
    let envelope = root.sign(&[&key]);
    let fleet = FleetId(envelope.payload_digest().0);
    let expires = issued + u64::from(args.lifetime.expires_days) * DAY;
    let (pool, seed) = new_pool(fleet, args.pool.clone(), 1, (issued, expires))?;
    let mut known = Known::new(fleet);
    known.accept(&envelope, issued)?;
    let online = online_key(fleet, 1, &control, (issued, expires));
    known.accept(&online.sign(&[&key]), issued)?;
    known.accept(&pool.sign(&[&key]), issued)?;

    let keys = cx.keys();
    keys.create(ROOT, Purpose::FleetRoot, key.expose_secret(), &protection)?;
    keys.create(&pool_file(&pool.name, 1), Purpose::Pool, &seed, &protection)?;
    known.save(&cx.home)?;

    let result = json!({
        "fleet": fleet,
        "root_key": cx.home.file(ROOT),
        "pool": pool.name,
        "expires": expires,
    });
    cx.output.result(&result, || format!("{fleet}"))?;
    cx.output
        .done("the fleet is made; the line above is its fingerprint, which everybody compares");
    cx.output.hint(&format!(
        "Back up {} and {}: without them no node or tenant can be admitted any more.\n\
         Next, with the operator's token of `casemate-control init`:\n  \
         casemate login https://HOST:PORT#{fleet} --token-file FILE --operator",
        cx.home.file(ROOT).display(),
        cx.home.file("pools").display(),
    ));
    Ok(())
}

/// A pool's epoch with a new key.
pub(super) fn new_pool(
    fleet: FleetId,
    name: casemate_trust::name::Name,
    epoch: u64,
    (issued, expires): (u64, u64),
) -> Result<(Pool, Zeroizing<[u8; SEED_BYTES]>), Error> {
    let mut seed = Zeroizing::new([0; SEED_BYTES]);
    random(seed.as_mut());
    let public_key = SealingKey::of_seed(&seed)
        .map_err(|error| Error::internal("no pool key could be made").source(error))?;
    let pool = Pool {
        fleet,
        name,
        epoch,
        public_key,
        issued,
        expires,
    };
    Ok((pool, seed))
}

fn online_key(
    fleet: FleetId,
    version: u64,
    control: &PublicKeys,
    (issued, expires): (u64, u64),
) -> OnlineKey {
    OnlineKey {
        fleet,
        version,
        liveness: control.liveness,
        quic: control.quic,
        api: control.api,
        issued,
        expires,
    }
}

fn control_keys(path: &Path) -> Result<PublicKeys, Error> {
    let wrong = |what: &str| {
        let next = "give the public.json that `casemate-control init` wrote, carried here by hand";
        Error::new(Code::Input, what, next).at(path.display())
    };
    let bytes = std::fs::read(path)
        .map_err(|error| wrong("cannot read the control plane's public keys").source(error))?;
    if bytes.len() > MAX_PUBLIC_BYTES {
        return Err(wrong("the file is too large for three public keys"));
    }
    serde_json::from_slice(&bytes).map_err(|error| {
        wrong("the file does not contain the control plane's public keys").source(error)
    })
}

/// `casemate fleet online`
pub(super) fn online(cx: &Context, args: &FleetOnline) -> Result<(), Error> {
    let control = control_keys(&args.control_public)?;
    let _lock = cx.home.lock()?;
    let key = cx.root_key()?;
    let mut known = here(cx)?;
    let issued = known.judge().time(now());
    let version = known.judge().online().map_or(0, |online| online.version) + 1;
    let expires = issued + u64::from(args.lifetime.expires_days) * DAY;
    let online = online_key(known.fleet(), version, &control, (issued, expires));
    known.accept(&online.sign(&[&key]), issued)?;
    let result = json!({ "fleet": known.fleet(), "version": version, "expires": expires });
    cx.output
        .result(&result, || format!("online key {version} is signed"))?;
    cx.output.hint("Next: `casemate fleet publish`");
    Ok(())
}

/// `casemate fleet publish`
pub(super) async fn publish(cx: &Context, args: &FleetPublish) -> Result<(), Error> {
    // Only the home with the root holds signed statements to publish.
    let root = cx.root_key()?;
    nodes::sign_revocations(cx)?;
    let mut session = Session::open(cx).await?;
    session.must_have_the_time()?;
    session.sign_anew(&root).await?;
    let count = session.publish_all().await? + images::sign_anew(&mut session, &root).await?;
    let undone = compare::revoke_again(&mut session).await?;
    let readmitted = match args.readmit {
        true => nodes::readmit_lost(&mut session).await?,
        false => Vec::new(),
    };
    let grants = nodes::grant_missing(&mut session, None).await?;
    let lost = compare::lost(&mut session).await?;
    let result = json!({
        "published": count, "grants": grants.len(), "nodes": grants,
        "revoked_nodes": undone.nodes, "revoked_tokens": undone.tokens, "readmitted": readmitted, "lost": lost,
    });
    let revoked = undone.nodes.len() + undone.tokens.len();
    cx.output.result(&result, || {
        match (count, grants.len(), revoked, lost.len()) {
            (0, 0, 0, 0) => "the control plane has everything that this home remembers".to_owned(),
            (count, grants, 0, _) => format!("{count} statements and {grants} grants handed in"),
            (count, grants, revoked, _) => format!(
                "{count} statements and {grants} grants handed in, {revoked} nodes and tokens \
                 revoked again"
            ),
        }
    })?;
    if revoked > 0 {
        cx.output.warn(&format!(
            "the control plane held nodes or tokens that this home has revoked: {}. It was \
             restored from an older copy, or somebody restored them",
            undone.names().join(", ")
        ));
    }
    if !readmitted.is_empty() {
        let names: Vec<_> = readmitted.iter().map(ToString::to_string).collect();
        cx.output
            .done(&format!("admitted again: {}", names.join(", ")));
    }
    lost.iter().for_each(|line| cx.output.warn(line));
    Ok(())
}

/// `casemate fingerprint`
pub(super) fn fingerprint(cx: &Context) -> Result<(), Error> {
    let fleet = here(cx)?.fleet();
    let url = Connection::load(&cx.home)
        .ok()
        .map(|connection| connection.url);
    let login = url.as_ref().map(|url| format!("{url}#{fleet}"));
    let result = json!({ "fleet": fleet, "url": url, "login": login });
    cx.output
        .result(&result, || login.unwrap_or_else(|| fleet.to_string()))
}

pub(super) fn here(cx: &Context) -> Result<Known, Error> {
    Known::load(&cx.home)?.ok_or_else(|| {
        Error::new(
            Code::NotLoggedIn,
            "this home belongs to no fleet",
            "make one with `casemate fleet init`, or log in to one with `casemate login`",
        )
        .at(cx.home.path().display())
    })
}
