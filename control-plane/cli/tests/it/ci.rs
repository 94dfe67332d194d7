//! A job without a terminal, by the steps that the tenants' guide gives.

use std::path::Path;
use std::process::{Command, Stdio};

use super::world::{Person, World, world};

/// Runs a command in a session of its own, which has no terminal to ask on.
fn job(folder: &Path, words: &[&str], environment: &[(&str, &str)]) -> (i32, String, String) {
    let output = tokio::task::block_in_place(|| {
        Command::new("setsid")
            .args(["--wait", env!("CARGO_BIN_EXE_casemate")])
            .args(words)
            .current_dir(folder)
            .env_remove("CASEMATE_HOME")
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .output()
            .unwrap()
    });
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let code = output.status.code().unwrap();
    (code, text(output.stdout), text(output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_deploys_without_a_terminal() {
    let World {
        fake,
        operator,
        login,
        _dir,
        ..
    } = world().await;
    fake.given().nodes = vec!["edge-1"];
    // The key is made elsewhere, and its two files are secrets of the CI.
    let maker = Person::new(_dir.path(), "maker");
    std::fs::create_dir_all(&maker.folder).unwrap();
    let passphrase = ("CASEMATE_PASSPHRASE", "correct horse");
    let home = maker.home.to_str().unwrap();
    let (code, out, err) = job(
        &maker.folder,
        &["--home", home, "--json", "tenant", "key"],
        &[passphrase],
    );
    assert_eq!(code, 0, "{err}");
    let key: serde_json::Value = serde_json::from_str(&out).unwrap();
    let key = key["public_key"].as_str().unwrap();
    let added = operator.json(&["tenant", "add", "ci", "--key", key, "--host", "*.ci.test"]);
    let token = added["token"].as_str().unwrap();

    let runner = Person::new(_dir.path(), "runner");
    std::fs::create_dir_all(&runner.home).unwrap();
    for file in ["tenant.key", "tenant.pub"] {
        std::fs::copy(maker.home.join(file), runner.home.join(file)).unwrap();
    }
    let project = runner.project(
        "web",
        "web.ci.test",
        &format!("[env.production]\ncontrol = \"{login}\"\n"),
    );
    let project = Path::new(&project);
    let home = ("CASEMATE_HOME", runner.home.to_str().unwrap());
    let with =
        |words: &[&str], more: &[(&str, &str)]| job(project, words, &[&[home], more].concat());
    let token = ("CASEMATE_TOKEN", token);
    let (code, _, err) = with(&["login", "--env", "production"], &[token]);
    assert_eq!(code, 0, "{err}");
    let (code, out, err) = with(&["doctor", "--env", "production"], &[]);
    assert_eq!(code, 0, "{out}{err}");
    let deploy = ["deploy", "--env", "production", "--json"];
    // A missing setting is named, and no command waits for input.
    let (code, _, err) = with(&deploy, &[]);
    assert_eq!(code, 77, "{err}");
    assert!(err.contains("--passphrase-file"), "{err}");
    let (code, out, err) = with(&deploy, &[passphrase]);
    assert_eq!(code, 0, "{err}");
    let deployed: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(deployed["environment"], "production");
    let file = project.join("passphrase");
    std::fs::write(&file, "correct horse\n").unwrap();
    let file = ("CASEMATE_PASSPHRASE_FILE", file.to_str().unwrap());
    fake.given().away = Some("edge-1");
    let (code, out, err) = with(&[&deploy[..], &["--wait", "1"]].concat(), &[file]);
    assert_eq!(code, 80, "{out}{err}");
    // Colours and spinners are only for terminals.
    assert!(!format!("{out}{err}").contains('\u{1b}'), "{out}{err}");
}
