//! Case `resync`: a vault with an empty store receives the statements of every tenant of a fleet,
//! one after the other. The vault checks, writes and syncs each statement before it accepts it.
//! Time and written bytes have to grow linearly with the number of tenants, not with its square.

use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use casemate_channel::Control;
use casemate_tests::programs::program;
use casemate_trust::id::FleetId;
use casemate_trust::join::JoinToken;
use casemate_trust::key::SigningKey;
use casemate_trust::statement::{KeySet, Root, Statement as _, Tenant};
use casemate_wire::control::vault::{FromVault, ObjectKind, ToVault, Verdict};

use crate::Run;
use crate::peer::Who;
use crate::process::kib;
use crate::report::{Case, Row};

/// Number of tenants in the fleet, for each run.
const TENANTS: [u32; 4] = [500, 1000, 2000, 10_000];
/// When every statement expires.
const FAR: u64 = 4_000_000_000;

/// A vault that has just started with an empty store, and the root key.
struct Vault {
    child: Child,
    control: Control<ToVault, FromVault>,
    next: u64,
    _folder: tempfile::TempDir,
}

impl Drop for Vault {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _status = self.child.wait();
    }
}

impl Vault {
    fn start(fleet: FleetId, root: &SigningKey) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let control = ("127.0.0.1:1".to_owned(), root.public());
        let (node, pool) = ("edge-1".parse()?, "main".parse()?);
        let random = &mut casemate_control_testing::fleet::random;
        let token = JoinToken::new(fleet, control, node, pool, FAR, random);
        std::fs::write(folder.path().join("token"), token.expose_secret())?;
        let settings = "join_token_file = \"token\"\ntrust_anchors = []\n";
        std::fs::write(folder.path().join("vault.toml"), settings)?;
        let (ours, theirs) = casemate_channel::control::pair()?;
        rustix::io::ioctl_fionbio(&theirs, false)?;
        let child = Command::new(program("casemate-vault")?)
            .arg("--config")
            .arg(folder.path().join("vault.toml"))
            .arg("--state")
            .arg(folder.path().join("vault"))
            .stdin(Stdio::from(theirs))
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self {
            child,
            control: Control::new(ours)?,
            next: 0,
            _folder: folder,
        })
    }

    async fn submit(&mut self, kind: ObjectKind, bytes: Vec<u8>) -> Result<()> {
        self.next += 1;
        let asked = self.next;
        let message = ToVault::Submit {
            id: asked,
            kind,
            bytes,
        };
        self.control.send(&message, &[]).await?;
        loop {
            let received = self.control.recv().await?;
            match received.context("the vault has ended")?.0 {
                FromVault::Verdict { id, verdict } if id == asked => {
                    ensure!(verdict == Verdict::Accepted, "{verdict:?}");
                    return Ok(());
                }
                _ => {}
            }
        }
    }

    /// One of the kernel's counters for the vault's process.
    fn figure(&self, file: &str, name: &str) -> Result<u64> {
        let text = std::fs::read_to_string(format!("/proc/{}/{file}", self.child.id()))?;
        if let Some(kib) = kib(&text, name) {
            return Ok(kib * 1024);
        }
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        match line.and_then(|value| value.trim_start_matches(':').trim().parse().ok()) {
            Some(value) => Ok(value),
            None => bail!("{file} without {name}"),
        }
    }
}

/// Runs the case.
pub(crate) async fn run(run: &Run) -> Result<Case> {
    let title = "A full resync of a vault, one statement of each tenant";
    let columns = ["seconds", "MB written", "MB resident"];
    let mut case = Case::new("resync", title, "none", &columns);
    let key = SigningKey::from_seed(&[1; 32]).context("a key")?;
    let root = Root {
        version: 1,
        keys: vec![key.public()],
        threshold: 1,
        issued: 1,
        expires: FAR,
    };
    let root = root.sign(&[&key]);
    let fleet = FleetId(root.payload_digest().0);
    for count in TENANTS {
        let tenants: Vec<_> = (0..count)
            .map(|number| {
                let hosts = vec![format!("t{number}.apps.test").parse()?];
                let keys = KeySet::single(key.public());
                let name = format!("t{number}").parse()?;
                let tenant = Tenant::first(fleet, name, keys, hosts, 1, FAR);
                Ok(tenant.sign(&[&key]).to_bytes())
            })
            .collect::<Result<_>>()?;
        let mut vault = Vault::start(fleet, &key)?;
        vault.submit(ObjectKind::Root, root.to_bytes()).await?;
        let before = vault.figure("io", "wchar")?;
        let started = Instant::now();
        for tenant in tenants {
            vault.submit(ObjectKind::Tenant, tenant).await?;
        }
        let secs = started.elapsed().as_secs_f64();
        #[allow(clippy::cast_precision_loss, reason = "some billion")]
        let mb = |bytes: u64| bytes as f64 / 1e6;
        let written = mb(vault.figure("io", "wchar")? - before);
        let resident = mb(vault.figure("status", "VmRSS")?);
        run.say(&format!(
            "resync: {count} tenants in {secs:.1} s, {written:.1} MB written, \
             {resident:.1} MB resident"
        ));
        let what = format!("{count} tenants");
        let figures = [secs, written, resident];
        case.rows.push(Row::of_once(what, Who::Casemate, figures));
    }
    Ok(case)
}
