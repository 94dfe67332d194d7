//! People with their homes, and the fleet that they are in.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use super::fake::Fake;

pub(crate) struct Person {
    pub(crate) home: PathBuf,
    pub(crate) folder: PathBuf,
}

pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ran {
    /// It has ended with this exit code, and its error says this.
    #[track_caller]
    pub(crate) fn ended(self, code: i32, says: &str) -> Self {
        let Self { out, err, .. } = &self;
        assert_eq!(self.code, code, "{out}{err}");
        assert!(err.contains(says), "{says:?} is not in\n{err}");
        self
    }
}

impl Person {
    pub(crate) fn new(dir: &Path, name: &str) -> Self {
        let folder = dir.join(format!("{name}-work"));
        std::fs::create_dir_all(&folder).unwrap();
        Self {
            home: dir.join(name),
            folder,
        }
    }

    pub(crate) fn try_with(&self, args: &[&str], stdin: &str) -> Ran {
        self.try_in(("NO_COLOR", "1"), args, stdin)
    }

    /// Like a terminal: no escape sequence is removed from the output.
    pub(crate) fn run_in_colour(&self, args: &[&str]) -> Ran {
        tokio::task::block_in_place(|| self.try_in(("CLICOLOR_FORCE", "1"), args, ""))
    }

    fn try_in(&self, (key, value): (&str, &str), args: &[&str], stdin: &str) -> Ran {
        let mut child = Command::new(env!("CARGO_BIN_EXE_casemate"))
            .arg("--home")
            .arg(&self.home)
            .args(args)
            .current_dir(&self.folder)
            .env_remove("NO_COLOR")
            .env(key, value)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
        let output = child.wait_with_output().unwrap();
        Ran {
            code: output.status.code().unwrap(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    pub(crate) fn run(&self, args: &[&str]) -> Ran {
        tokio::task::block_in_place(|| self.try_with(args, ""))
    }

    pub(crate) fn json_with(&self, args: &[&str], stdin: &str) -> Value {
        let args: Vec<&str> = ["--json"].iter().chain(args).copied().collect();
        let ran = tokio::task::block_in_place(|| self.try_with(&args, stdin));
        assert_eq!(ran.code, 0, "{args:?}\n{}{}", ran.out, ran.err);
        serde_json::from_str(&ran.out).unwrap_or_else(|error| panic!("{error}: {}", ran.out))
    }

    pub(crate) fn json(&self, args: &[&str]) -> Value {
        self.json_with(args, "")
    }

    pub(crate) fn project(&self, name: &str, host: &str, more: &str) -> String {
        let folder = self.folder.join(name);
        std::fs::create_dir_all(folder.join("src")).unwrap();
        let toml =
            format!("name = \"{name}\"\nmain = \"src/main.ts\"\nhosts = [\"{host}\"]\n{more}");
        std::fs::write(folder.join("casemate.toml"), toml).unwrap();
        self.source(name, 1);
        folder.display().to_string()
    }

    /// The folder of a new project that is deployed.
    pub(crate) fn deploys(&self, name: &str, host: &str, more: &str) -> String {
        let project = self.project(name, host, more);
        self.json(&["deploy", "--project", &project]);
        project
    }

    pub(crate) fn source(&self, name: &str, version: u32) {
        let text = format!(
            "export default {{ fetch(): Response {{ return new Response('{version}') }} }};\n"
        );
        std::fs::write(self.folder.join(name).join("src/main.ts"), text).unwrap();
    }
}

pub(crate) struct World {
    pub(crate) _dir: tempfile::TempDir,
    pub(crate) fake: Fake,
    pub(crate) operator: Person,
    pub(crate) tenant: Person,
    pub(crate) login: String,
}

pub(crate) fn public_keys(fake: &Fake) -> Value {
    serde_json::json!({ "liveness": fake.key.public(), "quic": fake.key.public(), "api": fake.key.public() })
}

/// A fleet and a tenant `shop` that may answer for `*.shop.test`.
pub(crate) async fn world() -> World {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::start(3).await;
    let (operator, tenant) = (
        Person::new(dir.path(), "operator"),
        Person::new(dir.path(), "tenant"),
    );
    let public = dir.path().join("public.json");
    std::fs::write(&public, public_keys(&fake).to_string()).unwrap();
    let made = operator.json(&[
        "fleet",
        "init",
        "--control-public",
        public.to_str().unwrap(),
        "--plain-keys",
    ]);
    let url = format!(
        "https://{}#{}",
        fake.address,
        made["fleet"].as_str().unwrap()
    );
    let login = operator.json_with(
        &["login", &url, "--token-file", "-", "--operator"],
        "casemate_operator\n",
    );
    assert_eq!(login["published"], 3);
    let key = tenant.json(&["tenant", "key", "--plain-keys"]);
    let (public, fingerprint) = (
        key["public_key"].as_str().unwrap(),
        key["fingerprint"].as_str().unwrap(),
    );
    let added = operator.json(&[
        "tenant",
        "add",
        "shop",
        "--key",
        public,
        "--key",
        fingerprint,
        "--host",
        "*.shop.test",
    ]);
    let login = added["login"].as_str().unwrap().to_owned();
    let done = tenant.json_with(&["login", &login], added["token"].as_str().unwrap());
    assert_eq!(done["tenant"], "shop");
    World {
        _dir: dir,
        fake,
        operator,
        tenant,
        login,
    }
}
