//! The compared runtimes: Casemate, the runtimes that a user could take instead, and a plain server
//! as the floor that no runtime can beat.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use casemate_tests::fleet::{UPSTREAM_HOST, UPSTREAM_KEY};
use casemate_tests::programs::{Running, program, wait_until};

use crate::load::Target;

/// Where `npm ci` has installed the peers.
const PEERS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/peers/node_modules");
const WORKERD: &str = "@cloudflare/workerd-linux-64/bin/workerd";
const DENO: &str = "@deno/linux-x64-glibc/deno";
const ESBUILD: &str = "@esbuild/linux-x64/bin/esbuild";
/// The date of the workerd release: it enables all features that were on by default at that date.
const COMPATIBILITY_DATE: &str = "2026-11-01";
/// Time within which a peer must answer.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// A measured runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Who {
    Casemate,
    Workerd,
    Deno,
    Floor,
}

impl Who {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Casemate => "casemate",
            Self::Workerd => "workerd",
            Self::Deno => "deno",
            Self::Floor => "hyper",
        }
    }
}

/// The folder of the handlers.
pub(crate) fn function(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("functions")
        .join(format!("{name}.js"))
}

/// The handler as one file without imports, the same for all runtimes.
pub(crate) fn bundled(name: &str, folder: &Path) -> Result<PathBuf> {
    let out = folder.join(format!("{name}.bundled.js"));
    let mut command = Command::new(peer(ESBUILD)?);
    command
        .arg(function(name))
        .args(["--bundle", "--format=esm"]);
    command.arg(format!("--outfile={}", out.display()));
    command.env("NODE_PATH", PEERS);
    let ran = command.output()?;
    anyhow::ensure!(
        ran.status.success(),
        "esbuild: {}",
        String::from_utf8_lossy(&ran.stderr)
    );
    Ok(out)
}

fn peer(path: &str) -> Result<PathBuf> {
    let path = Path::new(PEERS).join(path);
    anyhow::ensure!(
        path.is_file(),
        "{} does not exist: `make bench` installs it",
        path.display()
    );
    Ok(path)
}

/// The version that each runtime prints.
pub(crate) fn versions() -> Result<Vec<(&'static str, String)>> {
    let of = |path: &str| -> Result<String> {
        let output = Command::new(peer(path)?).arg("--version").output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        Ok(text.lines().next().unwrap_or_default().trim().to_owned())
    };
    Ok(vec![("workerd", of(WORKERD)?), ("deno", of(DENO)?)])
}

/// A running peer.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) running: Running,
    pub(crate) address: SocketAddr,
}

impl Peer {
    pub(crate) fn target(&self) -> Target {
        Target {
            origin: format!("http://{}", self.address),
            hosts: Vec::new(),
            authorization: None,
        }
    }
}

fn free_port() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

fn started(name: &str, command: Command, address: SocketAddr, folder: &Path) -> Result<Peer> {
    let mut running = Running::start(name, command, &folder.join(format!("{name}.log")))?;
    wait_until(START_TIMEOUT, || {
        if let Some(status) = running.ended()? {
            anyhow::bail!("{name} ended with {status}: {}", running.log());
        }
        Ok(TcpStream::connect(address).is_ok().then_some(()))
    })
    .with_context(|| format!("{name} does not listen"))?;
    Ok(Peer { running, address })
}

/// workerd with these functions. Each is reached by its name as the first label of the host; a
/// single function is reached by every host.
pub(crate) fn workerd(functions: &[(String, PathBuf)], folder: &Path) -> Result<Peer> {
    workerd_with(functions, None, folder)
}

/// Like [`workerd`]; the functions may also call servers whose certificates this authority has
/// signed.
fn workerd_with(functions: &[(String, PathBuf)], ca: Option<&str>, folder: &Path) -> Result<Peer> {
    let address = free_port()?;
    let folder = folder.join(format!("workerd-{}", address.port()));
    std::fs::create_dir_all(&folder)?;
    let mut services = String::new();
    let mut workers = String::new();
    let mut bindings = String::new();
    for (number, (name, code)) in functions.iter().enumerate() {
        let file = format!("{number}.js");
        std::fs::copy(code, folder.join(&file))?;
        services += &format!("    (name = \"{name}\", worker = .w{number}),\n");
        workers += &format!(
            "const w{number} :Workerd.Worker = (modules = [(name = \"main.js\", esModule = embed \"{file}\")], \
             compatibilityDate = \"{COMPATIBILITY_DATE}\");\n"
        );
        bindings += &format!("(name = \"{name}\", service = \"{name}\"), ");
    }
    if let Some(ca) = ca {
        std::fs::write(folder.join("ca.pem"), ca)?;
        services += "    (name = \"internet\", network = (allow = [\"public\", \"private\", \"local\"], \
                     tlsOptions = (trustedCertificates = [embed \"ca.pem\"]))),\n";
    }
    let entry = if let [(name, _)] = functions {
        name.clone()
    } else {
        std::fs::write(folder.join("router.js"), ROUTER)?;
        services += "    (name = \"router\", worker = .router),\n";
        workers += &format!(
            "const router :Workerd.Worker = (modules = [(name = \"main.js\", esModule = embed \"router.js\")], \
             compatibilityDate = \"{COMPATIBILITY_DATE}\", bindings = [{bindings}]);\n"
        );
        "router".to_owned()
    };
    let config = format!(
        "using Workerd = import \"/workerd/workerd.capnp\";\nconst config :Workerd.Config = (\n  services = [\n{services}  ],\n  \
         sockets = [(name = \"http\", address = \"{address}\", http = (), service = \"{entry}\")]\n);\n{workers}"
    );
    let file = folder.join("config.capnp");
    std::fs::write(&file, config)?;
    let mut command = Command::new(peer(WORKERD)?);
    command.arg("serve").arg(&file);
    started("workerd", command, address, &folder)
}

/// Routes a request to the function that the host's first label names.
const ROUTER: &str = "export default { fetch(request, env) {
  const { hostname } = new URL(request.url);
  return env[hostname.slice(0, hostname.indexOf(\".\"))].fetch(request);
} };
";

/// `deno serve` with a function.
pub(crate) fn deno(code: &Path, folder: &Path) -> Result<Peer> {
    deno_with(code, None, folder)
}

fn deno_with(code: &Path, ca: Option<&Path>, folder: &Path) -> Result<Peer> {
    let address = free_port()?;
    let mut command = Command::new(peer(DENO)?);
    command.args([
        "serve",
        "--allow-all",
        "--no-config",
        "--no-lock",
        "--quiet",
    ]);
    command.args(["--host", "127.0.0.1", "--port", &address.port().to_string()]);
    if let Some(ca) = ca {
        command.arg("--cert").arg(ca);
    }
    command.arg(code).env("DENO_NO_UPDATE_CHECK", "1");
    command.env("DENO_DIR", folder.join("deno"));
    started("deno", command, address, folder)
}

/// A hyper server that answers as the hello function does.
pub(crate) fn floor(folder: &Path) -> Result<Peer> {
    let address = free_port()?;
    let mut command = Command::new(program("casemate-bench-floor")?);
    command.arg(address.to_string());
    started("floor", command, address, folder)
}

/// The TLS server that functions call, in a process of its own.
#[derive(Debug)]
pub(crate) struct Upstream {
    _running: Running,
    address: SocketAddr,
    pub(crate) ca_pem: String,
}

impl Upstream {
    pub(crate) fn start(folder: &Path) -> Result<Self> {
        let command = Command::new(program("casemate-bench-upstream")?);
        let running = Running::start("upstream", command, &folder.join("upstream.log"))?;
        let said = wait_until(START_TIMEOUT, || {
            Ok(serde_json::from_str::<serde_json::Value>(&running.log()).ok())
        })?;
        let text = |name: &str| {
            let text = said[name].as_str().map(ToOwned::to_owned);
            text.with_context(|| format!("the upstream printed no {name}"))
        };
        Ok(Self {
            address: text("address")?.parse()?,
            ca_pem: text("ca_pem")?,
            _running: running,
        })
    }

    /// The credential slot for `casemate.toml`; `upstream-ca.pem` lies in the same folder.
    pub(crate) fn credential(&self) -> String {
        format!(
            "[[credential]]\nbinding = \"payments\"\nsecret = \"PAYMENTS_KEY\"\nhost = \"{UPSTREAM_HOST}:{}\"\n\
             methods = [\"GET\"]\npaths = [\"/v1/*\"]\nslot = \"bearer\"\nca = \"upstream-ca.pem\"\n",
            self.address.port()
        )
    }

    /// The upstream as a target, for calls that no sandbox is in the way of.
    pub(crate) fn target(&self) -> Target {
        Target {
            origin: format!("https://{}", self.address),
            hosts: vec![format!("localhost:{}", self.address.port())],
            authorization: Some(format!("Bearer {UPSTREAM_KEY}")),
        }
    }

    /// JavaScript that makes the call, with the key written into its text.
    pub(crate) fn plain_call(&self) -> String {
        format!(
            "fetch(\"https://localhost:{}/v1/charges\", {{ headers: {{ authorization: \"Bearer {UPSTREAM_KEY}\" }} }})",
            self.address.port()
        )
    }

    pub(crate) fn workerd(&self, code: &Path, folder: &Path) -> Result<Peer> {
        let functions = [("call".to_owned(), code.to_owned())];
        workerd_with(&functions, Some(&self.ca_pem), folder)
    }

    pub(crate) fn deno(&self, code: &Path, folder: &Path) -> Result<Peer> {
        let ca = folder.join("upstream-ca.pem");
        std::fs::write(&ca, &self.ca_pem)?;
        deno_with(code, Some(&ca), folder)
    }
}
