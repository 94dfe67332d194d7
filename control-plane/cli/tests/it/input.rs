//! Tests of bad input.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::world::{Person, World, world};

#[tokio::test(flavor = "multi_thread")]
async fn uses_beyond_the_limits_are_refused_before_anything_is_uploaded() {
    let World {
        fake,
        operator,
        tenant,
        _dir,
        ..
    } = world().await;
    let project = tenant.project("web", "web.other.test", "");
    tenant
        .run(&["deploy", "--project", &project])
        .ended(64, "allowed: *.shop.test");
    assert!(fake.given().bundles.is_empty() && fake.given().objects.is_empty());
    operator.json(&["tenant", "hosts", "shop", "--add", "web.other.test"]);
    tenant.json(&["deploy", "--project", &project]);

    let slot =
        "[[credential]]\nbinding = \"pay\"\nsecret = \"K\"\nhost = \"b.test\"\nslot = \"bearer\"\n";
    tenant.json_with(&["secret", "put", "K", "--host", "a.test", "--short"], "v");
    let wider = tenant.project("wider", "wider.shop.test", slot);
    let objects = fake.given().objects.len();
    let ran = tenant.run(&["deploy", "--project", &wider]);
    assert_eq!(ran.code, 64, "{}", ran.err);
    assert!(
        ran.err.contains("the secret may not go to b.test"),
        "{}",
        ran.err
    );
    assert_eq!(fake.given().objects.len(), objects);
}

#[tokio::test(flavor = "multi_thread")]
async fn irreversible_commands_need_a_confirmation() {
    let World {
        fake,
        operator,
        tenant,
        login,
        _dir,
    } = world().await;
    for args in [
        &["node", "revoke", "edge-1"][..],
        &["token", "revoke", "t1"],
        &["tenant", "remove", "shop"],
    ] {
        let ran = operator.run(args);
        assert_eq!(ran.code, 64, "{args:?} {}", ran.err);
        assert!(ran.err.contains("--yes"), "{}", ran.err);
    }
    assert!(fake.given().deleted.is_empty());
    let help = operator.run(&["help"]);
    assert!(
        help.code == 0 && help.out.contains("The fleet (operator)"),
        "{}",
        help.out
    );
    // The output shows everything that the operator changed, and warns before a host with callers
    // is removed.
    let updated = operator.run(&["tenant", "update", "shop", "--max-heap-mib", "64"]);
    assert!(updated.out.contains("64 MiB of heap"), "{}", updated.out);
    assert_eq!(operator.json(&["tenant", "list"])[0]["memory_mib"], 4096);
    // If the key does not sign for the token's tenant, the login reports it.
    let other = Person::new(_dir.path(), "other");
    other.json(&["tenant", "key", "--plain-keys"]);
    let ran = tokio::task::block_in_place(|| other.try_with(&["login", &login], "casemate_1"))
        .ended(0, "does not sign for it");
    assert!(!ran.err.contains("signs for the tenant"), "{}", ran.err);
    drop(tenant);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_mistake_in_a_command_line_with_secrets_is_named() {
    let World { tenant, _dir, .. } = world().await;
    let ran = tenant.run(&["secret", "rm", "KEY", "--sure"]);
    assert_eq!(ran.code, 64, "{}", ran.err);
    let told = "an option is unknown";
    assert!(ran.err.contains(told), "{}", ran.err);
    assert!(!ran.err.contains("--sure"), "{}", ran.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_that_a_secret_loses_are_named() {
    let World { tenant, _dir, .. } = world().await;
    let put = |more: &[&str]| {
        let args = [&["secret", "put", "KEY", "--host", "api.test"][..], more].concat();
        let value = "a value of many bytes";
        let ran = tokio::task::block_in_place(|| tenant.try_with(&args, value));
        assert_eq!(ran.code, 0, "{}", ran.err);
        ran.err
    };
    let told = "KEY had limits until version 2";
    assert!(!put(&["--path", "/v1/*"]).contains("had limits"));
    assert!(!put(&["--path", "/v2/*"]).contains("had limits"));
    let err = put(&[]);
    assert!(err.contains(told) && err.contains("--path"), "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_beyond_the_operators_ceiling_are_refused_before_anything_is_uploaded() {
    let World {
        fake,
        operator,
        tenant,
        _dir,
        ..
    } = world().await;
    let update = ["tenant", "update", "shop", "--egress-host", "*.ok.test"];
    operator.json(&[&update[..], &["--egress-port", "443"]].concat());
    let rule = |host: &str| format!("[[egress]]\nhost = \"{host}\"\n");
    for (host, refused) in [
        ("elsewhere.test", "web declares calls to elsewhere.test:443"),
        ("a.ok.test:8443", "web declares calls to a.ok.test:8443"),
    ] {
        let project = tenant.project("web", "web.shop.test", &rule(host));
        for dry in [&[][..], &["--dry-run"]] {
            let ran = tenant
                .run(&[&["deploy", "--project", &project], dry].concat())
                .ended(64, refused);
            let allowed = "allowed: hosts *.ok.test, ports 443, private networks none";
            assert!(ran.err.contains(allowed), "{}", ran.err);
        }
    }
    assert!(fake.given().bundles.is_empty() && fake.given().objects.is_empty());
    tenant.deploys("web", "web.shop.test", &rule("a.ok.test"));
    // A function that runs already stays when the ceiling is lowered, and may still be changed in
    // other ways.
    operator.json(&["tenant", "update", "shop", "--egress-host", "b.ok.test"]);
    tenant.json(&["renew"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenants_memory_is_part_of_its_statement() {
    let World { operator, _dir, .. } = world().await;
    let memory = |statement: serde_json::Value| statement["ceilings"]["memory_mib"].clone();
    assert_eq!(memory(operator.json(&["tenant", "show", "shop"])), 4096);
    let update = ["tenant", "update", "shop", "--max-memory-mib"];
    let updated = operator.json(&[&update[..], &["1024"]].concat());
    assert_eq!(memory(updated), 1024);
    operator
        .run(&[&update[..], &["100"]].concat())
        .ended(64, "256");
    assert_eq!(memory(operator.json(&["tenant", "show", "shop"])), 1024);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_belongs_to_one_tenant() {
    let World {
        operator,
        tenant,
        _dir,
        ..
    } = world().await;
    let key = tenant.json(&["tenant", "key"]);
    let key = key["public_key"].as_str().unwrap();
    for host in ["a.shop.test", "*.shop.test"] {
        let ran = operator.run(&["tenant", "add", "mart", "--key", key, "--host", host]);
        assert_eq!(ran.code, 73, "{}{}", ran.out, ran.err);
        assert!(
            ran.err.contains("tenant shop has *.shop.test"),
            "{}",
            ran.err
        );
    }
    // The key is written as in the file `tenant.pub`.
    let quoted = format!("\"{key}\"");
    operator.json(&[
        "tenant",
        "add",
        "mart",
        "--key",
        &quoted,
        "--host",
        "mart.test",
    ]);
    let add = ["tenant", "hosts", "mart", "--add", "a.shop.test"];
    assert_eq!(operator.run(&add).code, 73);
    let instead = ["--add", "b.test", "--remove", "*.shop.test"];
    operator.json(&[&["tenant", "hosts", "shop"][..], &instead].concat());
    operator.json(&add);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_fails_changes_nothing() {
    let World {
        fake, tenant, _dir, ..
    } = world().await;
    let before = files(&tenant.home);
    let other_fleet = format!("https://{}#{}", fake.address, "0".repeat(64));
    for (address, code) in [
        (other_fleet.as_str(), 73),
        ("https://127.0.0.1:1", 69),
        ("http://a.test", 64),
    ] {
        let login = ["login", address, "--token-file", "-"];
        let ran = tokio::task::block_in_place(|| tenant.try_with(&login, "casemate_2"));
        assert_eq!(ran.code, code, "{address}\n{}{}", ran.out, ran.err);
        assert!(
            files(&tenant.home) == before,
            "{address} has changed the home"
        );
    }
    tenant.json(&["status"]);
}

fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = std::fs::read_dir(folder).unwrap();
    let contents = |path: PathBuf| match path.is_dir() {
        true => files(&path),
        false => BTreeMap::from([(path.clone(), std::fs::read(path).unwrap())]),
    };
    entries
        .flat_map(|entry| contents(entry.unwrap().path()))
        .collect()
}

/// The arguments, standard input, the exit code, and text that the error must contain.
type Case<'a> = (&'a [&'a str], &'a str, i32, &'a str);

const PUT: &[&str] = &["secret", "put", "K", "--host", "a.test"];

const BAD: &[Case<'_>] = &[
    (PUT, "a\r\nb", 65, "CR at byte 1"),
    (PUT, "a\0b", 65, "NUL at byte 1"),
    (PUT, "", 65, "got 0"),
    (PUT, "1234567", 65, "`--short`"),
    (
        &["secret", "put", "K", "--host", "a.test", "--value", "hush"],
        "",
        64,
        "standard input",
    ),
    (
        &["secret", "put", "K", "hush", "--host", "a.test"],
        "",
        64,
        "standard input",
    ),
    (
        &["secret", "put", "K=hush", "--host", "a.test"],
        "",
        64,
        "[NAME]",
    ),
    (
        &["secret", "--quiet", "put", "K", "hush"],
        "",
        64,
        "standard input",
    ),
    (
        &["secret", "put", "K", "--host", "a.test", "--pool", "eu"],
        "a value of sixteen bytes",
        66,
        "there is no pool eu",
    ),
    (&["rollback", "nothing"], "", 66, "nothing is deployed yet"),
    (&["fleet", "publish"], "", 78, "casemate fleet init"),
    (
        &["login", "http://x"],
        "",
        64,
        "https://HOST:PORT#FINGERPRINT",
    ),
    (&["login", "https://x#ab"], "", 64, "64 hex digits"),
    (&["renew"], "", 66, "casemate deploy"),
];

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_has_an_exit_code_and_a_next_step() {
    let World {
        tenant, fake, _dir, ..
    } = world().await;
    let project = tenant.project("web", "web.shop.test", "");
    std::fs::write(
        tenant.folder.join("web/src/main.ts"),
        "export default {\n  fetch( {\n",
    )
    .unwrap();
    let nothing = tenant.folder.display().to_string();
    let deploys: [Case<'_>; 2] = [
        (&["deploy", "--project", &project], "", 65, "src/main.ts:"),
        (&["deploy", "--project", &nothing], "", 66, "casemate init"),
    ];
    for (args, stdin, code, text) in deploys.iter().chain(BAD) {
        let ran = tokio::task::block_in_place(|| tenant.try_with(args, stdin));
        assert_eq!(ran.code, *code, "{args:?}\n{}", ran.err);
        assert!(
            ran.err.contains(text),
            "{args:?}: {text} is not in\n{}",
            ran.err
        );
        assert!(
            ran.err.contains("next:") && !ran.err.contains("hush"),
            "{args:?}\n{}",
            ran.err
        );
    }
    assert!(fake.given().manifests.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_not_an_image_is_not_pushed() {
    let World { operator, _dir, .. } = world().await;
    let file = _dir.path().join("image.efi");
    let path = file.to_str().unwrap();
    let push = ["image", "push", path, "--pool", "main"];
    let ran = operator.run(&push);
    assert_eq!(ran.code, 66, "{}", ran.err);
    for bytes in [&b"MZ and nothing that follows"[..], b"\x7fELF"] {
        std::fs::write(&file, bytes).unwrap();
        let ran = operator.run(&push);
        assert_eq!(ran.code, 66, "{}", ran.err);
        let says = ran.err.contains("not a node image") && ran.err.contains("casemate image build");
        assert!(says, "{}", ran.err);
    }
    let ran = operator.run(&["image", "push", path]);
    assert_eq!(ran.code, 64, "{}", ran.err);
    let ran = operator.run(&["image", "build", "--image-version", "1.2"]);
    assert_eq!(ran.code, 64, "{}", ran.err);
}
