//! `casemate doctor`: finds problems that would keep commands from working, each with a next step.

use std::os::unix::fs::PermissionsExt as _;

use casemate_api::fleet::FleetView;
use casemate_trust::freshness::MAX_SKEW_SECS;
use serde::Serialize;
use serde_json::json;

use crate::args;
use crate::client::{Address, Api};
use crate::error::{Code, Error};
use crate::keys::{FRESHNESS, ROOT, TENANT};
use crate::machine::{DAY, date, now};
use crate::output::table;
use crate::project::FILE;
use crate::session::{Connection, Context, Session, WARN_BEFORE};

/// Smallest difference between two clocks that is reported, seconds: an answer may itself take
/// some.
const CLOCK_SECS: u64 = 30;

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Ok,
    Warning,
    Failed,
    /// The check needs something that another check did not find.
    Skipped,
}

/// One check.
#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    state: State,
    found: String,
    next: Option<String>,
    #[serde(skip)]
    code: Option<Code>,
}

impl Check {
    fn new(name: &'static str, state: State, found: impl Into<String>) -> Self {
        Self {
            name,
            state,
            found: found.into(),
            next: None,
            code: None,
        }
    }

    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self::new(name, State::Ok, found)
    }

    fn next(mut self, next: impl Into<String>) -> Self {
        self.next = Some(next.into());
        self
    }

    /// A failed check, from an error that a command would end with.
    fn failed(name: &'static str, error: &Error) -> Self {
        let mut check = Self::new(name, State::Failed, error.summary()).next(error.next_step());
        check.code = Some(error.code());
        check
    }
}

/// `casemate doctor`
pub(super) async fn doctor(cx: &Context, args: &args::Doctor) -> Result<(), Error> {
    let mut checks = vec![home(cx)];
    checks.extend(keys(cx));
    checks.push(project(cx, args));
    checks.extend(connection(cx, args).await);
    let failed: Vec<_> = checks
        .iter()
        .filter(|check| check.state == State::Failed)
        .collect();
    let result = json!({ "ok": failed.is_empty(), "checks": checks });
    cx.output.result(&result, || shown(&checks))?;
    let Some(first) = failed.first() else {
        return Ok(());
    };
    let what = match failed.len() {
        1 => format!("the check `{}` failed", first.name),
        many => format!("{many} checks failed, `{}` first", first.name),
    };
    let next = first.next.clone().unwrap_or_default();
    Err(Error::new(first.code.unwrap_or(Code::Refused), what, next))
}

fn shown(checks: &[Check]) -> String {
    let rows: Vec<_> = checks
        .iter()
        .map(|check| {
            let state = match check.state {
                State::Ok => "ok",
                State::Warning => "WARNING",
                State::Failed => "FAILED",
                State::Skipped => "skipped",
            };
            vec![check.name.to_owned(), state.to_owned(), check.found.clone()]
        })
        .collect();
    let mut parts = vec![table(&["CHECK", "RESULT", "FOUND"], &rows)];
    let advised = checks.iter().filter_map(|check| {
        check
            .next
            .as_ref()
            .map(|next| format!("{}: {next}", check.name))
    });
    parts.extend(advised);
    parts.join("\n")
}

/// The home folder exists, only its owner has access, and it can be written.
fn home(cx: &Context) -> Check {
    let path = cx.home.path();
    let shown = path.display();
    let Ok(about) = std::fs::metadata(path) else {
        let mut check = Check::new("home", State::Failed, format!("{shown} does not exist"))
            .next("`casemate tenant key` makes it, or name another with `--home DIR`");
        check.code = Some(Code::NotLoggedIn);
        return check;
    };
    if let Err(error) = cx.home.lock() {
        return Check::failed("home", &error);
    }
    let mode = about.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Check::new(
            "home",
            State::Warning,
            format!("{shown} is open to others (mode {mode:04o})"),
        )
        .next(format!("chmod 700 {shown}"));
    }
    Check::ok("home", shown.to_string())
}

/// Each key file of this home can be read, by its owner alone.
fn keys(cx: &Context) -> Vec<Check> {
    let mut checks = Vec::new();
    for file in [TENANT, FRESHNESS, ROOT] {
        if !cx.keys().has(file) {
            continue;
        }
        checks.push(match cx.keys().is_encrypted(file) {
            Ok(true) => Check::ok("keys", format!("{file}, with a passphrase")),
            Ok(false) => Check::ok("keys", format!("{file}, without a passphrase")),
            Err(error) => Check::failed("keys", &error),
        });
    }
    if checks.is_empty() {
        checks.push(
            Check::new(
                "keys",
                State::Warning,
                "no key is in this home: it can read, and sign nothing",
            )
            .next(
                "`casemate tenant key` makes one to send to the operator; or copy tenant.key and \
                 tenant.pub here",
            ),
        );
    }
    checks
}

/// The project's file has no mistakes.
fn project(cx: &Context, args: &args::Doctor) -> Check {
    let folder = &args.project.project;
    if !folder.join(FILE).exists() {
        let found = format!("no {FILE} in {}", folder.display());
        return Check::new("project", State::Skipped, found);
    }
    match cx.project(folder) {
        Ok(project) => Check::ok("project", format!("function {}", project.name())),
        Err(error) => Check::failed("project", &error),
    }
}

/// Everything that needs the control plane, in the order of dependency.
async fn connection(cx: &Context, args: &args::Doctor) -> Vec<Check> {
    let skipped = |name, why: &str| Check::new(name, State::Skipped, format!("needs {why}"));
    let connection = match Connection::load(&cx.home) {
        Ok(connection) => connection,
        Err(error) => {
            let names = ["control plane", "clock", "fleet", "tenant", "expiry"];
            let mut checks = vec![Check::failed("login", &error)];
            checks.extend(names.map(|name| skipped(name, "a login")));
            return checks;
        }
    };
    let mut checks = vec![Check::ok("login", format!("to {}", connection.url))];
    match reach(&connection).await {
        Ok(clock) => {
            checks.push(Check::ok("control plane", "answers"));
            checks.push(clock);
        }
        Err(error) => {
            checks.push(Check::failed("control plane", &error));
            let names = ["clock", "fleet", "tenant", "expiry"];
            checks.extend(names.map(|name| skipped(name, "an answer of the control plane")));
            return checks;
        }
    }
    let mut session = match Session::open(cx).await {
        Ok(session) => session,
        Err(error) => {
            checks.push(Check::failed("fleet", &error));
            checks.extend(
                ["tenant", "expiry"]
                    .map(|name| skipped(name, "a fleet whose statements are valid")),
            );
            return checks;
        }
    };
    checks.push(Check::ok(
        "fleet",
        format!("{}, as this home knows it", session.fleet()),
    ));
    let (tenant, expiry) = tenant(&mut session, args).await;
    checks.push(tenant);
    checks.extend(expiry);
    checks
}

/// Whether the control plane answers, and the time of its clock.
async fn reach(connection: &Connection) -> Result<Check, Error> {
    let (mut api, _) = Api::meet(Address::parse(&connection.url)?).await?;
    let _: FleetView = api.get("/v1/fleet").await?;
    Ok(match api.clocks() {
        Some(said) => clocks(said.ours, said.theirs),
        None => Check::new(
            "clock",
            State::Skipped,
            "the control plane's answers have no date",
        ),
    })
}

/// Compares two clocks: a statement is refused before its time begins and after it ended.
fn clocks(ours: u64, theirs: u64) -> Check {
    let off = ours.abs_diff(theirs);
    let which = if ours > theirs { "ahead of" } else { "behind" };
    let found = format!(
        "{} here, {} at the control plane: this machine is {off} s {which} it",
        date(ours),
        date(theirs)
    );
    let next = "set the clock of whichever machine is wrong (`timedatectl`), and keep it by NTP";
    if off <= CLOCK_SECS {
        return Check::ok("clock", "agrees with the control plane's");
    }
    let is_wrong = off > MAX_SKEW_SECS;
    let state = if is_wrong {
        State::Failed
    } else {
        State::Warning
    };
    let mut check = Check::new("clock", state, found).next(next);
    check.code = is_wrong.then_some(Code::Refused);
    check
}

/// Checks the token, whether this home signs for the tenant, and until when everything holds.
async fn tenant(session: &mut Session<'_>, args: &args::Doctor) -> (Check, Vec<Check>) {
    let cx = session.cx;
    let has_tenant_key = cx.keys().has(TENANT);
    if args.whose.tenant.is_none() && !has_tenant_key && cx.is_operator() {
        let check = match session.list_tenants().await {
            Ok(tenants) => Check::ok(
                "tenant",
                format!("the operator's home, {} tenants", tenants.len()),
            ),
            Err(error) => Check::failed("tenant", &error),
        };
        return (check, vec![online_key(session)]);
    }
    let read = async {
        let id = session.own_tenant(args.whose.tenant.as_ref()).await?;
        session.read_pools().await?;
        session.read_tenant(id).await
    };
    let (tenant, view) = match read.await {
        Ok(read) => read,
        Err(error) => {
            let check = Check::new("expiry", State::Skipped, "needs a tenant");
            return (Check::failed("tenant", &error), vec![check]);
        }
    };
    let public = cx.keys().tenant_public().ok().flatten();
    let is_signer = public.is_some_and(|public| tenant.current.keys.contains(&public));
    let check = if has_tenant_key && !is_signer {
        let found = format!("this home's key does not sign for {}", tenant.name);
        let mut check = Check::new("tenant", State::Failed, found).next(
            "use the home with the tenant's key, or ask the operator which keys were admitted",
        );
        check.code = Some(Code::NoKey);
        check
    } else {
        Check::ok("tenant", format!("{} ({})", tenant.name, tenant.id))
    };
    let mut expiry = vec![online_key(session)];
    expiry.push(ends(
        "the tenant's statement",
        tenant.expires,
        "ask the operator to renew it: `casemate tenant hosts NAME`",
    ));
    let pools = session.known.judge().pools();
    expiry.extend(pools.map(|pool| {
        let what = format!("the key of pool {}", pool.name);
        ends(
            &what,
            pool.expires,
            "ask the operator to run `casemate pool rotate`",
        )
    }));
    let manifest = view.manifest.as_ref().and_then(|envelope| {
        use casemate_trust::statement::{Manifest, Statement as _};
        Manifest::read(envelope).ok()
    });
    expiry.extend(manifest.map(|manifest| {
        ends(
            "the manifest",
            manifest.expires,
            "sign it again: `casemate renew`",
        )
    }));
    (check, expiry)
}

fn online_key(session: &Session<'_>) -> Check {
    let expires = session
        .known
        .judge()
        .online()
        .map_or(0, |online| online.expires);
    ends(
        "the control plane's key",
        expires,
        "ask the operator to run `casemate fleet online`",
    )
}

/// Checks until when a statement or key holds.
fn ends(what: &str, expires: u64, next: &str) -> Check {
    let now = now();
    if expires <= now {
        let found = format!("{what} has expired ({})", date(expires));
        let mut check = Check::new("expiry", State::Failed, found).next(next);
        check.code = Some(Code::Refused);
        return check;
    }
    let found = format!("{what} holds until {}", date(expires));
    if expires - now < WARN_BEFORE {
        let days = (expires - now).div_ceil(DAY);
        let found = format!("{found}, {days} days from now");
        return Check::new("expiry", State::Warning, found).next(next);
    }
    Check::ok("expiry", found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_that_differ_are_named_with_both_times() {
        let at = 1_800_000_000;
        assert_eq!(clocks(at, at + CLOCK_SECS).state, State::Ok);
        assert_eq!(clocks(at, at + CLOCK_SECS + 1).state, State::Warning);
        let far = clocks(at + 500 * DAY, at);
        assert_eq!((far.state, far.code), (State::Failed, Some(Code::Refused)));
        let told = [date(at), date(at + 500 * DAY), "ahead of".to_owned()];
        assert!(told.iter().all(|text| far.found.contains(text)), "{far:?}");
        assert!(clocks(at, at + 500 * DAY).found.contains("behind"));
    }

    #[test]
    fn what_ends_soon_is_a_warning_and_what_has_ended_a_failure() {
        let states = [0, now() + DAY, now() + 2 * WARN_BEFORE].map(|at| ends("x", at, "y").state);
        assert_eq!(states, [State::Failed, State::Warning, State::Ok]);
    }
}
