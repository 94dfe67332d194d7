//! What bad input gets.

use super::world::{World, world};

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_given_is_refused_before_anything_is_uploaded() {
    let World {
        fake,
        operator,
        tenant,
        _dir,
        ..
    } = world().await;
    let project = tenant.project("web", "web.other.test", "");
    let ran = tenant.run(&["deploy", "--project", &project]);
    assert_eq!(ran.code, 64, "{}", ran.err);
    assert!(ran.err.contains("allowed: *.shop.test"), "{}", ran.err);
    assert!(fake.given().bundles.is_empty() && fake.given().objects.is_empty());
    operator.json(&["tenant", "hosts", "shop", "--add", "web.other.test"]);
    tenant.json(&["deploy", "--project", &project]);

    let slot =
        "[[credential]]\nbinding = \"pay\"\nsecret = \"K\"\nhost = \"b.test\"\nslot = \"bearer\"\n";
    tenant.json_with(&["secret", "put", "K", "--host", "a.test"], "v");
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
    let put = ["secret", "put", "K", "--host", "a.test"];
    let cases: &[(&[&str], &str, i32, &str)] = &[
        (&["deploy", "--project", &project], "", 65, "src/main.ts:"),
        (&["deploy", "--project", &nothing], "", 66, "casemate init"),
        (&put, "a\r\nb", 65, "CR at byte 1"),
        (&put, "a\0b", 65, "NUL at byte 1"),
        (&put, "", 65, "got 0"),
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
            "<NAME>",
        ),
        (
            &["secret", "--quiet", "put", "K", "hush"],
            "",
            64,
            "standard input",
        ),
        (
            &["secret", "put", "K", "--host", "a.test", "--pool", "eu"],
            "v",
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
    for (args, stdin, code, text) in cases {
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
