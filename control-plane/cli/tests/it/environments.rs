//! `--env`: another name, other hosts, another home, and never the wrong control plane.

use super::fake::Fake;
use super::world::{World, world};

#[tokio::test(flavor = "multi_thread")]
async fn an_environment_has_its_own_names_hosts_and_secrets() {
    let World {
        fake, tenant, _dir, ..
    } = world().await;
    fake.given().nodes = vec!["edge-1"];
    let more = "[[credential]]\nbinding = \"pay\"\nsecret = \"PAY_KEY\"\nhost = \"api.test\"\n\
         slot = \"bearer\"\n\
        [env.staging]\nname = \"web-staging\"\nhosts = [\"staging.shop.test\"]\n\
        [env.staging.secrets]\nPAY_KEY = \"STAGING_PAY_KEY\"\n";
    let project = tenant.project("web", "web.shop.test", more);
    let web = super::world::Person {
        home: tenant.home.clone(),
        folder: tenant.folder.join("web"),
    };
    let put = ["secret", "put", "PAY_KEY", "--host", "api.test"];
    web.json_with(
        &[&put[..], &["--env", "staging"]].concat(),
        "a staging key of sixteen",
    );
    let staging = web.json(&["deploy", "--env", "staging"]);
    assert_eq!(
        (
            &staging["function"],
            &staging["environment"],
            &staging["hosts"]
        ),
        (
            &"web-staging".into(),
            &"staging".into(),
            &serde_json::json!(["staging.shop.test"])
        )
    );
    let base = tenant.json(&["deploy", "--project", &project]);
    assert_eq!(
        (&base["function"], &base["environment"]),
        (&"web".into(), &serde_json::Value::Null)
    );
    let listed = web.json(&["secret", "list"]);
    assert_eq!(listed[0]["name"], "STAGING_PAY_KEY");
    let shown = web.json(&["versions", "web", "--env", "staging"]);
    assert_eq!(shown["functions"][0]["name"], "web-staging");
    web.json(&["secret", "rm", "PAY_KEY", "--yes", "--env", "staging"]);
    let removed = web.json(&["remove", "web", "--yes", "--env", "staging"]);
    assert_eq!(removed["function"], "web-staging");
    assert_eq!(
        web.json(&["versions"])["functions"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    let unknown = web.run(&["status", "--env", "prod"]);
    assert!(
        unknown.code == 64 && unknown.err.contains("there are staging"),
        "{}",
        unknown.err
    );
    let nowhere = tenant.run(&["status", "--env", "staging"]);
    assert!(
        nowhere.code == 66 && nowhere.err.contains("there is no casemate.toml"),
        "{}",
        nowhere.err
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_environment_never_reaches_another_control_plane() {
    let World {
        tenant,
        login,
        _dir,
        ..
    } = world().await;
    let other = Fake::start(9).await;
    let control = |text: &str| {
        format!("[env.staging]\nhosts = [\"staging.shop.test\"]\ncontrol = \"{text}\"\n")
    };
    let elsewhere = format!("https://{}#{}", other.address, "7".repeat(64));
    let project = tenant.project("web", "web.shop.test", &control(&elsewhere));
    let deploy = ["deploy", "--project", &project, "--env", "staging"];
    let ran = tenant.run(&deploy);
    assert_eq!(ran.code, 76, "{}", ran.err);
    assert!(
        ran.err.contains("another control plane") && ran.err.contains(&elsewhere),
        "{}",
        ran.err
    );
    assert!(other.given().heard.is_empty());
    tenant.project("web", "web.shop.test", &control(&login));
    tenant.json(&deploy);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_profile_is_a_separate_home_and_login_uses_its_control_plane() {
    let World {
        tenant,
        login,
        _dir,
        ..
    } = world().await;
    let config = _dir.path().join("config");
    let profile = config.join("casemate-staging");
    std::fs::create_dir_all(&profile).unwrap();
    for file in ["tenant.key", "tenant.pub"] {
        std::fs::copy(tenant.home.join(file), profile.join(file)).unwrap();
    }
    let more = format!("[env.staging]\nprofile = \"staging\"\ncontrol = \"{login}\"\n");
    let project = tenant.project("web", "web.shop.test", &more);
    let token = _dir.path().join("token");
    std::fs::write(&token, "casemate_1").unwrap();
    // The command runs without `--home`, which would take precedence over the profile.
    let run = |args: &[&str]| {
        let output = tokio::task::block_in_place(|| {
            std::process::Command::new(env!("CARGO_BIN_EXE_casemate"))
                .args(args)
                .env("XDG_CONFIG_HOME", &config)
                .env_remove("CASEMATE_HOME")
                .current_dir(&project)
                .output()
                .unwrap()
        });
        assert!(output.status.success(), "{args:?}: {output:?}");
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()
    };
    let token = token.to_str().unwrap();
    let done = run(&["--json", "login", "--env", "staging", "--token-file", token]);
    assert_eq!(done["tenant"], "shop");
    let me = run(&["--json", "whoami", "--env", "staging"]);
    assert_eq!(me["home"], profile.display().to_string());
    run(&["--json", "deploy", "--env", "staging"]);
    assert!(!config.join("casemate").exists());
}
