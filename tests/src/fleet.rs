//! A whole fleet: control plane, operator, one node, one tenant with a secret, and the upstream
//! that it calls.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::cli::Cli;
use crate::control::Control;
use crate::node::{Node, Settings, Workers};
use crate::upstream::Upstream;

/// The key that the upstream requires: no function may see it, and no file may hold it in clear.
pub const UPSTREAM_KEY: &str = "cmk_live_7f3Kq/9s+Zr2b=Xw5e8T";
/// The upstream's name, which only the node's vault resolves.
pub const UPSTREAM_HOST: &str = "payments.demo.test";
/// The host of the tenant's first function.
pub const FUNCTION_HOST: &str = "hello.demo.test";
/// Time within which a pushed change must take effect.
pub const SOON: Duration = Duration::from_secs(60);

/// A running fleet. Dropping it ends its programs.
#[derive(Debug)]
pub struct Fleet<N = Node> {
    /// The folder of everything that belongs to the fleet.
    pub folder: PathBuf,
    /// The control plane.
    pub control: Control,
    /// The operator's command line.
    pub operator: Cli,
    /// The tenant's command line.
    pub tenant: Cli,
    /// The node: its programs on this machine, or a machine of its own.
    pub node: N,
    /// The fleet's fingerprint.
    pub fingerprint: String,
    _temporary: Option<tempfile::TempDir>,
}

impl Fleet {
    /// Starts a fleet, up to a tenant that is logged in, in a folder that is removed with the
    /// fleet.
    pub fn start() -> Result<Self> {
        let temporary = tempfile::Builder::new().prefix("casemate-").tempdir()?;
        // The node's programs run as users of their own and have to traverse this folder.
        std::fs::set_permissions(temporary.path(), std::fs::Permissions::from_mode(0o755))?;
        let mut fleet = Self::start_in(temporary.path(), &mut |_| ())?;
        fleet._temporary = Some(temporary);
        Ok(fleet)
    }

    /// Like [`Self::start`], in `folder`; reports each step to `step`.
    pub fn start_in(folder: &Path, step: &mut dyn FnMut(&str)) -> Result<Self> {
        let start = |folder: &Path, token: &str| {
            let settings = Settings {
                hosts: vec![UPSTREAM_HOST.to_owned()],
                require: vec!["seccomp".into(), "no_new_privs".into()],
                user: None,
                workers: Workers::default(),
            };
            Node::start(folder, token, &settings)
        };
        let fleet = Self::start_with(folder, None, step, start)?;
        fleet
            .node
            .wait_for("a member with a lease", SOON, |status| {
                status["vault"]["lease_left_secs"]
                    .as_u64()
                    .is_some_and(|left| left > 0)
            })?;
        Ok(fleet)
    }
}

impl<N> Fleet<N> {
    /// Like [`Self::start_in`], with a node of another kind, which `start` starts with its folder
    /// and its join token. `seen_as` is the address by which that node reaches this machine.
    pub fn start_with(
        folder: &Path,
        seen_as: Option<&str>,
        step: &mut dyn FnMut(&str),
        start: impl FnOnce(&Path, &str) -> Result<N>,
    ) -> Result<Self> {
        step("a control plane starts; its keys can only sign that it is alive");
        let control = Control::start(&folder.join("control"), seen_as)?;
        step("the operator makes a fleet: the root key never leaves this machine");
        let operator = Cli::new(&folder.join("operator"))?;
        let public = control.state().join("public.json");
        let made = operator.json(
            folder,
            &[
                "fleet",
                "init",
                "--plain-keys",
                "--control-public",
                text(&public)?,
            ],
        )?;
        let fingerprint = made["fleet"]
            .as_str()
            .context("the fleet's fingerprint")?
            .to_owned();
        let address = format!("https://{}#{fingerprint}", control.api);
        let token = control.state().join("operator.token");
        operator.ok(
            folder,
            &[
                "login",
                &address,
                "--operator",
                "--token-file",
                text(&token)?,
            ],
            b"",
        )?;
        step(
            "a node starts with a join token: launch, supervisor, vault, gateway and spare workers, each in its sandbox",
        );
        let join = folder.join("edge-1.token");
        operator.ok(
            folder,
            &["node", "token", "edge-1", "--out", text(&join)?],
            b"",
        )?;
        let node = start(&folder.join("node"), &std::fs::read_to_string(&join)?)?;
        step("the operator admits the node and seals the pool's key to the node's vault");
        operator.ok(folder, &["node", "admit", "edge-1", "--wait", "120"], b"")?;
        step("a tenant makes a key, and the operator admits the tenant by it");
        let tenant = Cli::new(&folder.join("tenant"))?;
        let hosts = ["--host", FUNCTION_HOST, "--host", "*.apps.demo.test"];
        admit(folder, &operator, &address, ("shop", &tenant), &hosts)?;
        Ok(Self {
            folder: folder.to_owned(),
            control,
            operator,
            tenant,
            node,
            fingerprint,
            _temporary: None,
        })
    }

    /// Adds a tenant with these hosts; returns the tenant's command line.
    pub fn add_tenant(&self, name: &str, hosts: &[&str]) -> Result<Cli> {
        self.add_tenant_with(name, hosts, &[])
    }

    /// Like [`Self::add_tenant`], with more options of `casemate tenant add`.
    pub fn add_tenant_with(&self, name: &str, hosts: &[&str], options: &[&str]) -> Result<Cli> {
        let tenant = Cli::new(&self.folder.join(format!("tenant-{name}")))?;
        let address = format!("https://{}#{}", self.control.api, self.fingerprint);
        let hosts = hosts.iter().flat_map(|host| ["--host", host]);
        let options: Vec<&str> = hosts.chain(options.iter().copied()).collect();
        admit(
            &self.folder,
            &self.operator,
            &address,
            (name, &tenant),
            &options,
        )?;
        Ok(tenant)
    }

    /// The demo's project with the upstream's address filled in, ready to deploy.
    pub fn project(&self, upstream: &Upstream) -> Result<PathBuf> {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo");
        let to = self.folder.join("hello");
        copy(&from, &to)?;
        let config = to.join("casemate.toml");
        let address = format!("{UPSTREAM_HOST}:{}", upstream.address.port());
        std::fs::write(
            &config,
            std::fs::read_to_string(&config)?.replace("@UPSTREAM_HOST@", &address),
        )?;
        std::fs::write(to.join("upstream-ca.pem"), &upstream.ca_pem)?;
        Ok(to)
    }

    /// A project of one JavaScript file, for the test of one feature.
    pub fn small_project(&self, name: &str, config: &str, code: &str) -> Result<PathBuf> {
        self.small_project_at(&format!("{name}.apps.demo.test"), name, config, code)
    }

    /// Like [`Self::small_project`], with another host.
    pub fn small_project_at(
        &self,
        host: &str,
        name: &str,
        config: &str,
        code: &str,
    ) -> Result<PathBuf> {
        let folder = self.folder.join(name);
        std::fs::create_dir_all(&folder)?;
        let head = format!("name = \"{name}\"\nmain = \"main.js\"\nhosts = [\"{host}\"]\n");
        std::fs::write(folder.join("casemate.toml"), head + config)?;
        std::fs::write(folder.join("main.js"), code)?;
        Ok(folder)
    }

    /// Seals the upstream's key for the port and the certificate authority that the project's slot
    /// names.
    pub fn put_secret(&self, project: &Path) -> Result<()> {
        self.put_secret_with(project, &[])
    }

    /// Like [`Self::put_secret`], with more options of `casemate secret put`.
    pub fn put_secret_with(&self, project: &Path, options: &[&str]) -> Result<()> {
        self.put_secret_value(project, UPSTREAM_KEY, options)
    }

    /// Like [`Self::put_secret_with`], with another value.
    pub fn put_secret_value(&self, project: &Path, value: &str, options: &[&str]) -> Result<()> {
        let text = std::fs::read_to_string(project.join("casemate.toml"))?;
        let file: toml::Table = text.parse()?;
        let slots = file.get("credential").and_then(toml::Value::as_array);
        let slot = slots.and_then(|slots| slots.first());
        let named = |key: &str| slot?.get(key)?.as_str();
        let host = named("host").context("the project's first slot names no host")?;
        let name = named("secret").context("the project's first slot names no secret")?;
        let mut args = vec!["secret", "put", name, "--host", host];
        args.extend(["--path", "/v1/*"]);
        args.extend(named("ca").into_iter().flat_map(|ca| ["--ca", ca]));
        args.extend(options);
        self.tenant.ok(project, &args, value.as_bytes())?;
        Ok(())
    }

    /// Deploys the project, and waits until the node runs the release.
    pub fn deploy(&self, project: &Path) -> Result<()> {
        self.tenant.ok(project, &["deploy", "--wait", "60"], b"")?;
        Ok(())
    }
}

/// Makes the tenant's key, has the operator admit the tenant with that key, and logs the tenant in.
fn admit(
    folder: &Path,
    operator: &Cli,
    address: &str,
    (name, tenant): (&str, &Cli),
    options: &[&str],
) -> Result<()> {
    let key = tenant.json(folder, &["tenant", "key", "--plain-keys"])?;
    let key = key["public_key"]
        .as_str()
        .context("the tenant's public key")?;
    let token = folder.join(format!("{name}.token"));
    let token = text(&token)?;
    let mut add = vec!["tenant", "add", name, "--key", key, "--token-out", token];
    add.extend(options);
    operator.ok(folder, &add, b"")?;
    tenant.ok(folder, &["login", address, "--token-file", token], b"")?;
    Ok(())
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("the path is not valid UTF-8")
}

/// Copies a folder.
fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}
