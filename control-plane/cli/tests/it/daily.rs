//! Tests of the daily commands, and of many secrets at once.

use std::path::Path;

use super::world::{Person, World, world};

#[tokio::test(flavor = "multi_thread")]
async fn versions_show_time_author_note_and_nodes() {
    let World {
        fake, tenant, _dir, ..
    } = world().await;
    fake.given().nodes = vec!["edge-1", "edge-2"];
    let project = tenant.project("web", "web.shop.test", "");
    let deploy = ["deploy", "--project", &project, "--message"];
    let first = tenant.json(&[&deploy[..], &["the first\nand more"]].concat());
    tenant.source("web", 2);
    fake.given().away = Some("edge-2");
    let ran = tenant.run(&[&deploy[..], &["the second\u{1b}[31m"]].concat());
    assert_eq!(ran.code, 80, "{}", ran.err);
    let all = tenant.json(&["versions"]);
    let versions = all["functions"][0]["versions"].as_array().unwrap();
    assert_eq!(versions.len(), 2);
    let [second, earlier] = [&versions[0], &versions[1]];
    assert_eq!(second["message"], "the second[31m");
    assert_eq!(
        (&second["wanted"], &second["nodes"]),
        (&true.into(), &serde_json::json!(["edge-1"]))
    );
    assert_eq!(
        (&earlier["message"], &earlier["release"]),
        (&"the first".into(), &first["release"])
    );
    assert!(second["deployed"].as_u64().unwrap() >= earlier["deployed"].as_u64().unwrap());
    assert_eq!(all["nodes_behind"][0]["node"], "edge-2");
    // A rollback moves the release and leaves its note.
    fake.given().away = None;
    tenant.json(&["rollback", "web"]);
    let shown = tenant.run(&["versions", "web"]).out;
    let line = shown.lines().nth(1).unwrap();
    assert!(
        line.contains("the first") && line.contains("2 of 2"),
        "{shown}"
    );
    // The notes of releases that are no longer listed are removed, and a deployment may have none.
    tenant.json(&["prune", "web", "--keep", "0"]);
    tenant.source("web", 3);
    tenant.json(&[&deploy[..], &[""]].concat());
    let all = tenant.json(&["versions", "web"]);
    let messages: Vec<_> = all["functions"][0]["versions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|version| version["message"].clone())
        .collect();
    assert_eq!(messages, [serde_json::Value::Null, "the first".into()]);
    assert_eq!(tenant.run(&["versions", "other"]).code, 66);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoami_shows_for_which_tenant_this_home_signs() {
    let World {
        operator,
        tenant,
        _dir,
        ..
    } = world().await;
    let me = tenant.json(&["whoami"]);
    assert_eq!(
        (&me["tenant"], &me["signs_for_tenant"], &me["has_root"]),
        (&"shop".into(), &true.into(), &false.into())
    );
    let key = tenant.json(&["tenant", "key"]);
    assert_eq!(me["key"], key["fingerprint"]);
    let they = operator.json(&["whoami"]);
    assert_eq!(
        (&they["tenant"], &they["has_root"]),
        (&serde_json::Value::Null, &true.into())
    );
    assert_eq!(they["fleet"], me["fleet"]);
}

fn states(person: &Person) -> (i32, Vec<(String, String)>, String) {
    let ran = person.run(&["--json", "doctor"]);
    let result: serde_json::Value = serde_json::from_str(&ran.out)
        .unwrap_or_else(|error| panic!("{error}: {}{}", ran.out, ran.err));
    let text = |check: &serde_json::Value, key: &str| check[key].as_str().unwrap().to_owned();
    let checks = result["checks"].as_array().unwrap().iter();
    let checks = checks
        .map(|check| (text(check, "name"), text(check, "state")))
        .collect();
    (ran.code, checks, ran.out + &ran.err)
}

fn state_of(checks: &[(String, String)], name: &str) -> String {
    checks
        .iter()
        .find(|(known, _)| known == name)
        .map(|(_, state)| state.clone())
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_names_what_is_wrong_with_a_next_step() {
    let World { tenant, _dir, .. } = world().await;
    let (code, checks, text) = states(&tenant);
    assert_eq!(code, 0, "{text}");
    for name in [
        "home",
        "keys",
        "login",
        "control plane",
        "clock",
        "fleet",
        "tenant",
        "expiry",
    ] {
        assert_eq!(state_of(&checks, name), "ok", "{text}");
    }
    assert_eq!(state_of(&checks, "project"), "skipped", "{text}");

    std::fs::write(tenant.folder.join("casemate.toml"), "name = 1\n").unwrap();
    let (code, checks, text) = states(&tenant);
    assert_eq!(
        (code, state_of(&checks, "project").as_str()),
        (64, "failed"),
        "{text}"
    );
    std::fs::remove_file(tenant.folder.join("casemate.toml")).unwrap();

    let key = tenant.home.join("tenant.key");
    let mode = |mode: u32| {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    mode(0o644);
    let (code, checks, text) = states(&tenant);
    assert_eq!(
        (code, state_of(&checks, "keys").as_str()),
        (74, "failed"),
        "{text}"
    );
    assert!(text.contains("chmod 600"), "{text}");
    mode(0o600);

    // If the control plane is away, the checks that need it are skipped.
    let connection = tenant.home.join("connection.json");
    let held = std::fs::read_to_string(&connection).unwrap();
    let port = held
        .split("https://127.0.0.1:")
        .nth(1)
        .unwrap()
        .split('"')
        .next()
        .unwrap();
    let elsewhere = held.replace(&format!(":{port}\""), ":1\"");
    std::fs::write(&connection, elsewhere).unwrap();
    let (code, checks, text) = states(&tenant);
    assert_eq!(
        (code, state_of(&checks, "control plane").as_str()),
        (69, "failed"),
        "{text}"
    );
    assert_eq!(state_of(&checks, "tenant"), "skipped", "{text}");

    let nobody = Person::new(_dir.path(), "nobody");
    let (code, checks, text) = states(&nobody);
    assert_eq!(
        (code, state_of(&checks, "home").as_str()),
        (78, "failed"),
        "{text}"
    );
    assert_eq!(state_of(&checks, "login"), "failed", "{text}");
    // The check creates no files.
    assert!(!nobody.home.exists());
}

const SLOTS: &str = "[[credential]]\nbinding = \"pay\"\nsecret = \"PAY_KEY\"\n\
     host = \"api.test:8443\"\nslot = \"bearer\"\n\
    [[credential]]\nbinding = \"mail\"\nsecret = \"MAIL_KEY\"\nhost = \"mail.test\"\n\
    slot = \"bearer\"\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_secrets_is_one_manifest_and_no_error_shows_a_value() {
    let World {
        fake, tenant, _dir, ..
    } = world().await;
    fake.given().nodes = vec!["edge-1"];
    let project = tenant.project("web", "web.shop.test", SLOTS);
    let path = tenant.folder.join(".env");
    let file = path.to_str().unwrap();
    let put = ["secret", "put", "--project", &project, "--env-file", file];
    std::fs::write(
        &path,
        "# keys\nPAY_KEY=hunter2-hunter2-one\nexport MAIL_KEY='hunter2 $two hunter2'\n",
    )
    .unwrap();
    let sealed = tenant.json(&put);
    assert_eq!(sealed["manifest"], 1);
    let places: Vec<_> = sealed["secrets"]
        .as_array()
        .unwrap()
        .iter()
        .map(|secret| (secret["secret"].clone(), secret["hosts"].clone()))
        .collect();
    assert_eq!(
        places,
        [
            ("MAIL_KEY".into(), serde_json::json!(["mail.test"])),
            ("PAY_KEY".into(), serde_json::json!(["api.test:8443"]))
        ]
    );
    tenant.json(&["deploy", "--project", &project]);
    assert_eq!(
        tenant.json(&["secret", "list"]).as_array().unwrap().len(),
        2
    );

    // With one mistake, nothing is sealed.
    for (text, told) in [
        (
            "PAY_KEY=hunter2-hunter2-two\nOTHER=hunter2-hunter2\n",
            "uses OTHER",
        ),
        ("PAY_KEY=hunter2-hunter2-two\nhunter2-hunter2\n", "line 2"),
        (
            "PAY_KEY=hunter2-hunter2-two\nMAIL_KEY=hun\n",
            "MAIL_KEY has fewer than 8 bytes",
        ),
    ] {
        std::fs::write(&path, text).unwrap();
        let ran = tenant.run(&put);
        assert!([65, 66].contains(&ran.code), "{}", ran.err);
        assert!(
            ran.err.contains(told) && !ran.err.contains("hunter"),
            "{told}: {}",
            ran.err
        );
    }
    let all = |dir: &Path| std::fs::read_dir(dir).unwrap().count();
    assert_eq!(fake.given().manifests.values().next().unwrap().len(), 2);
    assert!(all(&tenant.home) > 0);
    // All secrets get the same hosts, and the file is standard input.
    let ran = tenant.json_with(
        &["secret", "put", "--env-file", "-", "--host", "a.test"],
        "ONE=hunter2-hunter2-one\nTWO=hunter2-hunter2-two\n",
    );
    assert_eq!(ran["secrets"].as_array().unwrap().len(), 2);
    let ran = tenant.run(&["secret", "put", "ONE", "--env-file", file]);
    assert_eq!(ran.code, 64, "{}", ran.err);
    let ran = tenant.run(&["secret", "put", "ONE"]);
    assert!(ran.code == 64 && ran.err.contains("--host"), "{}", ran.err);
    assert!(!String::from_utf8_lossy(&fake.given().heard).contains("hunter2"));
}

/// The completions that a shell receives for the last word of a line.
fn completed(person: &Person, shell: &str, line: &[&str]) -> Vec<String> {
    let home = person.home.to_str().unwrap();
    let words: Vec<&str> = ["casemate", "--home", home]
        .into_iter()
        .chain(line.iter().copied())
        .collect();
    let ran = std::process::Command::new(env!("CARGO_BIN_EXE_casemate"))
        .arg("--")
        .args(&words)
        .env("CASEMATE_COMPLETE", shell)
        .env("_CLAP_COMPLETE_INDEX", (words.len() - 1).to_string())
        .env("_CLAP_IFS", "\n")
        .current_dir(person.folder.join("web"))
        .output()
        .unwrap();
    assert!(ran.status.success(), "{ran:?}");
    let text = String::from_utf8(ran.stdout).unwrap();
    text.lines().map(ToOwned::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn shells_complete_names_without_a_control_plane() {
    let World {
        tenant,
        operator,
        _dir,
        fake,
        ..
    } = world().await;
    let project = tenant.project(
        "web",
        "web.shop.test",
        &format!("{SLOTS}[env.staging]\n[env.prod]\n"),
    );
    tenant.json_with(
        &["secret", "put", "SIGN_KEY", "--host", "a.test"],
        "a value of sixteen bytes",
    );
    let first = tenant.json(&["deploy", "--project", &project, "--message", "the first"]);
    tenant.source("web", 2);
    tenant.json(&["deploy", "--project", &project]);
    operator.json(&["node", "token", "edge-1"]);
    drop(fake);
    let release = &first["release"].as_str().unwrap()[..12];
    for shell in ["bash", "zsh", "fish"] {
        let all = |line: &[&str]| completed(&tenant, shell, line).join(" ");
        assert!(all(&["rollback", ""]).contains("web"));
        assert!(all(&["rollback", "web", "--to", ""]).contains(release));
        let secrets = all(&["secret", "rm", ""]);
        assert!(
            ["PAY_KEY", "MAIL_KEY", "SIGN_KEY"]
                .iter()
                .all(|name| secrets.contains(name)),
            "{secrets}"
        );
        let environments = all(&["deploy", "--env", ""]);
        assert!(
            environments.contains("staging") && environments.contains("prod"),
            "{environments}"
        );
        assert!(all(&["status", "--tenant", ""]).contains("shop"));
        assert!(all(&["ver"]).contains("versions"));
    }
    // The description is included where a shell can show it.
    let told = completed(&tenant, "fish", &["rollback", "web", "--to", ""]).join("\n");
    assert!(told.contains("the first"), "{told}");
    std::fs::create_dir_all(operator.folder.join("web")).unwrap();
    assert!(completed(&operator, "bash", &["node", "show", ""]).contains(&"edge-1".to_owned()));
    let nobody = Person::new(_dir.path(), "nobody");
    std::fs::create_dir_all(nobody.folder.join("web")).unwrap();
    assert!(
        completed(&nobody, "bash", &["deploy", "--w"])
            .iter()
            .all(|word| word.starts_with("--w"))
    );
}
