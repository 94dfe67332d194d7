//! `casemate login`.

use std::io::{IsTerminal as _, Read as _};
use std::path::Path;

use casemate_trust::id::FleetId;
use casemate_trust::statement::Tenant;
use serde_json::json;
use zeroize::Zeroizing;

use crate::args::Login;
use crate::client::Address;
use crate::error::{Code, Error};
use crate::session::{Context, Session};

/// Longest token, bytes.
const MAX_TOKEN_BYTES: u64 = 4096;

/// `casemate login`
pub(super) async fn login(cx: &Context, args: &Login) -> Result<(), Error> {
    let (address, fleet) = control_plane(cx, args)?;
    if args.operator && !cx.is_operator() {
        cx.root_key()?;
    }
    let token = token(args)?;
    let mut session = Session::first(cx, &address.to_string(), fleet, Some(token)).await?;
    // The token is tried before it is stored.
    let tenants = if session.view.fleet.is_some() {
        session.list_tenants().await?
    } else {
        Vec::new()
    };
    let tenant = if cx.is_operator() || tenants.is_empty() {
        None
    } else {
        signed_for(&mut session).await?
    };
    session.keep()?;
    let mut published = 0;
    if cx.is_operator() {
        published = session.publish_all().await?;
    }
    let fleet = session.fleet();
    let result = json!({
        "fleet": fleet,
        "url": address.to_string(),
        "published": published,
        "tenant": tenant.as_ref().map(|tenant| &tenant.name),
        "tenant_id": tenant.as_ref().map(|tenant| tenant.id),
        "control_version": session.view.version,
    });
    cx.output
        .result(&result, || format!("logged in to {address}, fleet {fleet}"))?;
    if published > 0 {
        cx.output.done(&format!(
            "{published} statements of the fleet are published"
        ));
    }
    if let Some(tenant) = tenant {
        cx.output
            .done(&format!("this home signs for the tenant {}", tenant.name));
    } else if cx.is_operator() {
        cx.output.hint(
            "Next: `casemate node token NAME`, and `casemate tenant add NAME --key KEY --host \
             HOST`",
        );
    }
    Ok(())
}

/// Where to log in, and the fleet's fingerprint if one was given.
fn control_plane(cx: &Context, args: &Login) -> Result<(Address, Option<FleetId>), Error> {
    let environment = cx.environment.as_ref();
    let control = environment.and_then(|environment| environment.control.as_ref());
    let given = args
        .address
        .as_deref()
        .or(control.map(|control| control.text.as_str()));
    let given = given.ok_or_else(|| {
        Error::new(
            Code::Usage,
            "no control plane is named",
            "give its address, or write it as `control` into the environment's table in \
             casemate.toml",
        )
    })?;
    let (url, fragment) = given
        .split_once('#')
        .map_or((given, None), |(url, fragment)| (url, Some(fragment)));
    let address = Address::parse(url)?;
    Ok((address, fragment.map(fingerprint).transpose()?))
}

/// The tenant of the token, if this home has a key that signs for it; warns where the key is
/// another's.
async fn signed_for(session: &mut Session<'_>) -> Result<Option<Tenant>, Error> {
    let Some(public) = session.cx.keys().tenant_public()? else {
        return Ok(None);
    };
    let id = session.own_tenant(None).await?;
    let (found, _) = session.read_tenant(id).await?;
    if found.current.keys.contains(&public) {
        return Ok(Some(found));
    }
    session.cx.output.warn(&format!(
        "the token is of the tenant {}, and this home's key (fingerprint {}) does not sign for it: \
         nothing can be deployed from here before the operator admits the key, or the right key is \
         in this home",
        found.name,
        public.fingerprint()
    ));
    Ok(None)
}

fn fingerprint(text: &str) -> Result<FleetId, Error> {
    text.trim().to_ascii_lowercase().parse().map_err(|error| {
        Error::new(
            Code::Usage,
            "the part behind # is not a fingerprint",
            "copy it whole: 64 hex digits, which the operator sees with `casemate fingerprint`",
        )
        .at(text)
        .source(error)
    })
}

fn token(args: &Login) -> Result<Zeroizing<String>, Error> {
    // A file that is named takes precedence over a token of the environment.
    let text = match (&args.token_file, &args.token) {
        (Some(path), _) if path == Path::new("-") => read(std::io::stdin().lock(), path)?,
        (Some(path), _) => {
            let file = std::fs::File::open(path).map_err(|error| cannot_read(path, error))?;
            read(file, path)?
        }
        (None, Some(token)) => Zeroizing::new(token.clone()),
        (None, None) if std::io::stdin().is_terminal() => {
            let typed = rpassword::prompt_password("API token: ");
            Zeroizing::new(typed.map_err(|error| cannot_read(Path::new("the terminal"), error))?)
        }
        (None, None) => read(std::io::stdin().lock(), Path::new("standard input"))?,
    };
    let token = Zeroizing::new(text.trim().to_owned());
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Error::new(
            Code::Usage,
            "expected an API token",
            "give the token that `casemate tenant add` or `casemate token create` printed with \
             `--token-file FILE`",
        ));
    }
    Ok(token)
}

fn read(from: impl std::io::Read, path: &Path) -> Result<Zeroizing<String>, Error> {
    let mut text = Zeroizing::new(String::new());
    from.take(MAX_TOKEN_BYTES)
        .read_to_string(&mut text)
        .map_err(|error| cannot_read(path, error))?;
    Ok(text)
}

fn cannot_read(path: &Path, error: std::io::Error) -> Error {
    Error::new(
        Code::Input,
        "cannot read the token",
        "check the path and the file's permissions",
    )
    .at(path.display())
    .source(error)
}
