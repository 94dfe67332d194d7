//! A command's verified connection to the control plane, together with what this home knows of the
//! fleet.

mod connection;
mod context;
mod publish;

use casemate_api::fleet::{FleetView, PoolList, StatementAnswer};
use casemate_api::tenant::{TenantList, TenantSummary, TenantView};
use casemate_trust::dsse::Envelope;
use casemate_trust::id::{FleetId, TenantId};
use casemate_trust::judge::Refusal;
use casemate_trust::late::Late;
use casemate_trust::name::Name;
use casemate_trust::statement::Tenant;
use http::Method;
use zeroize::Zeroizing;

use crate::client::{Address, Api, not_the_control_plane};
use crate::clock::Clocks;
use crate::error::{Code, Error};
use crate::expiry;
use crate::home::Lock;
use crate::machine::{DAY, date, now};
use crate::memory::{Known, Shown, refused};

pub use connection::Connection;
pub use context::Context;

/// Time before an expiry from which on a warning is printed.
pub const WARN_BEFORE: u64 = 30 * DAY;
/// Most warnings of one command about expiry.
const MAX_WARNINGS: usize = 5;

/// A verified connection, with the home locked.
#[derive(Debug)]
pub struct Session<'a> {
    /// The settings of the command.
    pub cx: &'a Context,
    /// The statements that this home has seen.
    pub known: Known,
    /// The control plane.
    pub api: Api,
    /// The control plane's view of the fleet.
    pub view: FleetView,
    connection: Connection,
    lock: Option<Lock>,
}

impl<'a> Session<'a> {
    /// Opens the connection of an earlier login.
    ///
    /// # Errors
    /// There was no login, or the control plane cannot be reached or proves another identity.
    pub async fn open(cx: &'a Context) -> Result<Self, Error> {
        let lock = cx.home.lock()?;
        let connection = Connection::load(&cx.home)?;
        let known = Known::load(&cx.home)?.ok_or_else(|| {
            Error::new(
                Code::NotLoggedIn,
                "this home has forgotten which fleet it belongs to",
                "log in again with the fingerprint that the operator gave you",
            )
        })?;
        cx.must_be_of_environment(known.fleet())?;
        Self::meet(cx, lock, known, connection).await
    }

    /// Opens the first connection to the control plane of `fleet`.
    ///
    /// # Errors
    /// This home belongs to another fleet, or see [`Session::open`].
    pub async fn first(
        cx: &'a Context,
        url: &str,
        fleet: Option<FleetId>,
        token: Option<Zeroizing<String>>,
    ) -> Result<Self, Error> {
        let lock = cx.home.lock()?;
        let known = match (Known::load(&cx.home)?, fleet) {
            (Some(known), Some(fleet)) if known.fleet() != fleet => {
                return Err(Error::new(
                    Code::Exists,
                    format!("this home belongs to the fleet {}", known.fleet()),
                    "use another home for another fleet: `casemate --home DIR login ...`",
                )
                .at(cx.home.path().display()));
            }
            (Some(known), _) => known,
            (None, Some(fleet)) => Known::new(fleet),
            (None, None) => {
                return Err(Error::new(
                    Code::Usage,
                    "the address lacks the fleet's fingerprint",
                    "give it as https://HOST:PORT#FINGERPRINT; the operator sees it with \
                     `casemate fingerprint`",
                ));
            }
        };
        let token = token.map(|token| token.to_string());
        cx.must_be_of_environment(known.fleet())?;
        // A new token may belong to another tenant.
        let earlier = Connection::load(&cx.home)
            .ok()
            .filter(|earlier| earlier.token == token);
        let connection = Connection {
            url: url.to_owned(),
            token,
            tenant: earlier.and_then(|earlier| earlier.tenant),
        };
        Self::meet(cx, lock, known, connection).await
    }

    async fn meet(
        cx: &'a Context,
        lock: Lock,
        mut known: Known,
        connection: Connection,
    ) -> Result<Self, Error> {
        let address = Address::parse(&connection.url)?;
        let (mut api, key) = Api::meet(address).await?;
        let view: FleetView = api.get("/v1/fleet").await?;
        if let Some(clocks) = api.clocks() {
            // Only the first value is kept: a command is short.
            let _ = cx.clocks.set(clocks);
            if let Some(differ) = clocks.differ() {
                cx.output.warn(&differ);
            }
        }
        let judged = judge_view(&mut known, &view);
        // The holder of the root has newer statements than the control plane, and may be about to
        // publish them.
        if !cx.is_operator() && judged? == Shown::Older {
            cx.output.warn(&older(
                "the statements of the fleet's root",
                "The operator restores them with `casemate fleet publish`.",
            ));
        }
        let Some(online) = known.judge().online() else {
            return Err(Error::new(
                Code::Refused,
                "the control plane has no fleet yet, so nothing proves its identity",
                "the operator publishes the fleet with `casemate login` from the home where \
                 `casemate fleet init` was run",
            )
            .at(api.address()));
        };
        if online.api != key {
            return Err(not_the_control_plane(api.address()));
        }
        let (expires, clock) = (online.expires, now());
        if expires <= clock && !cx.is_operator() {
            let late = Late { expires, clock };
            return Err(refused("online key", Refusal::OnlineExpired(late)));
        }
        known.save(&cx.home)?;
        let token = connection.token.clone().map(Zeroizing::new);
        api.trust(key, token);
        let session = Self {
            cx,
            known,
            api,
            view,
            connection,
            lock: Some(lock),
        };
        if cx.is_operator() {
            session.warn_of_fleet_expiry();
        }
        Ok(session)
    }

    /// Warn the holder of the root about expiry that only the root can renew.
    fn warn_of_fleet_expiry(&self) {
        let soon = now() + WARN_BEFORE;
        let mut ending = expiry::of_fleet(&self.known);
        ending.retain(|item| item.expires < soon);
        ending.sort_by_key(|item| item.expires);
        for item in ending.iter().take(MAX_WARNINGS) {
            self.warn_of_expiry(&item.what(), item.expires, &item.how);
        }
        if ending.len() > MAX_WARNINGS {
            let more = ending.len() - MAX_WARNINGS;
            let text = format!("{more} more expire within 30 days: `casemate expiry` lists them");
            self.cx.output.warn(&text);
        }
    }

    /// Refuse to sign with a clock that is far from the control plane's.
    ///
    /// # Errors
    /// The clock is far off.
    pub fn must_have_the_time(&self) -> Result<(), Error> {
        self.cx.clocks.get().map_or(Ok(()), Clocks::may_sign)
    }

    /// Store this connection.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn keep(&mut self) -> Result<(), Error> {
        self.connection.save(&self.cx.home)
    }

    /// Let other commands use this home while this one only waits.
    pub fn unlock(&mut self) {
        self.lock = None;
    }

    /// Lock the home again, and read what others have written in the meantime.
    ///
    /// # Errors
    /// Another command holds the lock for too long.
    pub fn relock(&mut self) -> Result<(), Error> {
        if self.lock.is_none() {
            self.lock = Some(self.cx.home.lock()?);
            if let Some(known) = Known::load(&self.cx.home)? {
                self.known = known;
            }
        }
        Ok(())
    }

    /// The fleet.
    pub fn fleet(&self) -> FleetId {
        self.known.fleet()
    }

    /// Judge a statement of this home by the rules of a node, store it, and upload it.
    ///
    /// # Errors
    /// It is refused here or by the control plane.
    pub async fn publish(&mut self, envelope: &Envelope) -> Result<StatementAnswer, Error> {
        self.must_have_the_time()?;
        // The statement is stored first: in the other order, a crash in between would let this home
        // sign the same version twice.
        self.known.accept(envelope, now())?;
        self.post(envelope).await
    }

    async fn post(&mut self, envelope: &Envelope) -> Result<StatementAnswer, Error> {
        self.api
            .send_json(Method::POST, "/v1/statements", envelope)
            .await
    }

    /// Upload all statements of the fleet and its tenants that the control plane lacks; returns how
    /// many.
    ///
    /// # Errors
    /// The control plane refuses.
    pub async fn publish_all(&mut self) -> Result<usize, Error> {
        Ok(self.publish_fleet().await? + self.publish_tenants().await?)
    }

    /// Upload the root, online key, revoked nodes and pools that the control plane lacks; returns
    /// how many.
    ///
    /// # Errors
    /// The control plane refuses.
    pub async fn publish_fleet(&mut self) -> Result<usize, Error> {
        let mut there: Vec<Envelope> = self.view.roots.clone();
        there.extend(self.view.online_key.clone());
        there.extend(self.view.revocations.clone());
        if self.view.fleet.is_some() {
            let pools: PoolList = self.api.get("/v1/pools").await?;
            there.extend(pools.pools.into_iter().flat_map(|pool| pool.statements));
        }
        // A statement that the newest root has signed again has the same content with another
        // signature.
        let missing: Vec<Envelope> = self
            .known
            .fleet_statements()
            .filter(|envelope| !there.contains(envelope))
            .cloned()
            .collect();
        for envelope in &missing {
            self.post(envelope).await?;
        }
        Ok(missing.len())
    }

    /// Upload the statements of tenants that the control plane has lost.
    async fn publish_tenants(&mut self) -> Result<usize, Error> {
        let listed = self.list_tenants().await?;
        let versions = self.known.judge().memory().tenants.clone();
        let lacking = |id: &TenantId| {
            let there = listed.iter().find(|summary| summary.id == *id);
            let theirs = there.map_or(0, |summary| summary.version);
            let ours = versions.get(id).map_or(0, |seen| seen.tenant.version);
            (theirs < ours).then_some(theirs)
        };
        let tenants = self.known.tenant_statements();
        let missing = tenants.filter_map(|(id, _)| Some((id, lacking(id)?)));
        let missing: Vec<Envelope> = missing
            .flat_map(|(id, theirs)| self.known.tenant_statements_after(id, theirs))
            .collect();
        for envelope in &missing {
            self.post(envelope).await?;
        }
        let is_first_root = self
            .known
            .judge()
            .root()
            .is_none_or(|root| root.version == 1);
        let again = if is_first_root {
            0
        } else {
            self.publish_anew(&listed).await?
        };
        Ok(missing.len() + again)
    }

    /// Read the pools and judge them.
    ///
    /// # Errors
    /// The control plane cannot be reached, or shows pools that a node would refuse.
    pub async fn read_pools(&mut self) -> Result<PoolList, Error> {
        let list: PoolList = self.api.get("/v1/pools").await?;
        for pool in &list.pools {
            self.known.accept_pools(&pool.statements, now())?;
        }
        Ok(list)
    }

    /// The tenants that this token may see.
    ///
    /// # Errors
    /// The control plane cannot be reached.
    pub async fn list_tenants(&mut self) -> Result<Vec<TenantSummary>, Error> {
        let list: TenantList = self.api.get("/v1/tenants").await?;
        Ok(list.tenants)
    }

    /// The id of a tenant by its name, as the control plane reports it. This function verifies that
    /// the name is signed with this id, and that this home knows no other id for it: the next
    /// statement may be signed by the root.
    ///
    /// # Errors
    /// There is no such tenant, or the control plane shows another tenant in its place.
    pub async fn tenant_id(&mut self, name: &Name) -> Result<TenantId, Error> {
        let tenants = self.list_tenants().await?;
        let found = tenants.iter().find(|tenant| tenant.name == *name);
        let id = found.map(|tenant| tenant.id).ok_or_else(|| {
            let known: Vec<_> = tenants
                .iter()
                .map(|tenant| tenant.name.to_string())
                .collect();
            let next = if known.is_empty() {
                "`casemate tenant add` admits one".to_owned()
            } else {
                format!("known are {}", known.join(", "))
            };
            Error::new(Code::NotFound, format!("there is no tenant {name}"), next)
        })?;
        if let Some(known) = self.known.judge().tenant_named(name)
            && known != id
        {
            return Err(tenant_other(
                name,
                &id,
                &format!("this home knows it as {known}"),
            ));
        }
        let (tenant, _) = self.read_tenant(id).await?;
        if tenant.name == *name {
            Ok(id)
        } else {
            let signed = format!("that id was signed for the tenant {}", tenant.name);
            Err(tenant_other(name, &id, &signed))
        }
    }

    /// Read one tenant's statements and judge them.
    ///
    /// # Errors
    /// The control plane shows a statement that a node would refuse.
    pub async fn read_tenant(&mut self, id: TenantId) -> Result<(Tenant, TenantView), Error> {
        let view: TenantView = self.api.get(&format!("/v1/tenants/{id}")).await?;
        self.known.accept_history(&view.statements, now())?;
        let state = self.known.judge().tenant(&id);
        let tenant = state.map(|state| state.tenant.clone());
        let tenant = tenant.ok_or_else(|| refused("tenant", Refusal::TenantUnknown))?;
        Ok((tenant, view))
    }

    /// The tenant that this home acts for: the named one, the earlier one, the one whose key is
    /// here, or the only one.
    ///
    /// # Errors
    /// There is no such tenant, or there are several.
    pub async fn own_tenant(&mut self, name: Option<&Name>) -> Result<TenantId, Error> {
        let environment = self.cx.environment.as_ref();
        if let Some(name) = name.or(environment.and_then(|environment| environment.tenant.as_ref()))
        {
            return self.tenant_id(name).await;
        }
        if let Some(id) = self.connection.tenant {
            return Ok(id);
        }
        let tenants = self.list_tenants().await?;
        let public = self.cx.keys().tenant_public()?;
        let mut ours = Vec::new();
        if let Some(public) = public {
            for summary in &tenants {
                let (tenant, _) = self.read_tenant(summary.id).await?;
                if tenant.current.keys.contains(&public) {
                    ours.push(summary.id);
                }
            }
        }
        let found = match (ours.as_slice(), tenants.as_slice()) {
            ([only], _) => Some(*only),
            ([], [only]) => Some(only.id),
            _ => None,
        };
        let id = found.ok_or_else(|| {
            let next = match (tenants.is_empty(), self.cx.keys().has(crate::keys::ROOT)) {
                (true, true) => "no tenant has been admitted yet: `casemate tenant add` admits one",
                (true, false) => {
                    "ask the operator to admit you: `casemate tenant add NAME --key` \
                     with the key of `casemate tenant key`"
                }
                (false, _) => "name the tenant: `--tenant NAME`",
            };
            Error::new(
                Code::NotFound,
                "it is not clear which tenant is meant",
                next,
            )
        })?;
        if ours == [id] {
            self.connection.tenant = Some(id);
            self.keep()?;
        }
        Ok(id)
    }

    /// Print a prominent warning about a near expiry.
    pub fn warn_of_expiry(&self, what: &str, expires: u64, next: &str) {
        let now = now();
        if expires <= now {
            let text = format!(
                "{what} has EXPIRED ({}): credentials are no longer injected. {next}",
                date(expires)
            );
            self.cx.output.warn(&text);
        } else if expires - now < WARN_BEFORE {
            let days = (expires - now).div_ceil(DAY);
            let text = format!("{what} expires in {days} days ({}). {next}", date(expires));
            self.cx.output.warn(&text);
        }
    }
}

/// The error for a control plane that shows one tenant under the name of another.
fn tenant_other(name: &Name, shown: &TenantId, signed: &str) -> Error {
    Error::new(
        Code::Refused,
        format!("the control plane shows another tenant under the name {name}"),
        "nothing was signed. Compare the id with `casemate tenant show` of the home with the root; \
         if the tenant was admitted anew under another id, use a new home",
    )
    .at(format!("tenant {shown}"))
    .lines([signed.to_owned()])
}

/// The warning for a control plane that shows less than this home remembers.
pub fn older(what: &str, next: &str) -> String {
    format!(
        "the control plane shows an older state of {what} than this home remembers: it was \
         restored from an older copy, or an attacker rolls it back. This home uses the state that \
         it remembers. {next}"
    )
}

fn judge_view(known: &mut Known, view: &FleetView) -> Result<Shown, Error> {
    if view.fleet.is_some_and(|fleet| fleet != known.fleet()) {
        return Err(refused("control plane's fleet", Refusal::FleetOther));
    }
    let mut shown = known.accept_history(&view.roots, now())?;
    let single = view.online_key.iter().chain(&view.revocations);
    for envelope in single {
        if known.accept_history(std::slice::from_ref(envelope), now())? == Shown::Older {
            shown = Shown::Older;
        }
    }
    Ok(shown)
}
