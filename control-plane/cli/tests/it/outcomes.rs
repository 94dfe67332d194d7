//! Exit codes of a deployment, for scripts: before the upload, and after it.

use super::world::{World, world};

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_that_does_not_run_everywhere_has_its_own_exit_code() {
    let World {
        fake, tenant, _dir, ..
    } = world().await;
    fake.given().nodes = vec!["edge-1", "edge-2"];
    let project = tenant.project("web", "web.shop.test", "");
    let deploy = ["--json", "deploy", "--project", &project, "--wait", "1"];

    fake.given().away = Some("edge-2");
    let ran = tenant.run(&deploy);
    assert_eq!(ran.code, 80, "{}{}", ran.out, ran.err);
    let result: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    let nodes = serde_json::json!({ "current": 1, "total": 2, "away": ["edge-2"] });
    assert_eq!(result["nodes"], nodes);
    assert!(
        ran.err.contains("nodes_away") && ran.err.contains("node edge-2"),
        "{}",
        ran.err
    );
    // A command that withdraws has the same outcomes, and all nodes may be away at the same time.
    fake.given().nodes = vec!["edge-2"];
    let ran = tenant.run(&["remove", "web", "--yes", "--wait", "1"]);
    assert_eq!(ran.code, 80, "{}{}", ran.out, ran.err);

    fake.given().away = None;
    tenant.json(&deploy[1..]);

    fake.given().silent = true;
    tenant.run(&deploy).ended(84, "signed and stored");
    let stored = fake.given().manifests.values().next().unwrap().len();

    // None of these codes is used if nothing was stored.
    let wrong = tenant.project("wrong", "web.other.test", "");
    let ran = tenant.run(&["deploy", "--project", &wrong]);
    assert_eq!(ran.code, 64, "{}{}", ran.out, ran.err);
    assert!(!ran.err.contains("stored"), "{}", ran.err);
    assert_eq!(
        fake.given().manifests.values().next().unwrap().len(),
        stored
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_beyond_the_ceilings_is_named_at_once_in_a_dry_run_too() {
    let World {
        fake,
        operator,
        tenant,
        _dir,
        ..
    } = world().await;
    let limits = ["--max-cpu-time-ms", "10", "--max-heap-mib", "64"];
    let egress = ["--egress-host", "*.ok.test", "--egress-port", "443"];
    operator.json(&[&["tenant", "update", "shop"][..], &limits, &egress].concat());
    let rules = "[[egress]]\nhost = \"a.test\"\n[[egress]]\nhost = \"a.ok.test\"\n[[egress]]\n\
         host = \"b.test:25\"\n";
    let over = "[limits]\ncpu_time_ms = 20\nheap_mib = 65\n";
    for (name, hosts, more, told) in [
        ("one", "one.shop.test", rules, "a.test:443, b.test:25"),
        (
            "two",
            "a.test\", \"two.shop.test\", \"b.test",
            "",
            "was not given: a.test, b.test",
        ),
        (
            "three",
            "three.shop.test",
            over,
            "cpu_time_ms = 20; the tenant's ceiling is 10",
        ),
        (
            "four",
            "four.shop.test",
            over,
            "heap_mib = 65; the tenant's ceiling is 64",
        ),
    ] {
        let project = tenant.project(name, hosts, more);
        for dry in [&[][..], &["--dry-run"]] {
            let ran = tenant.run(&[&["deploy", "--project", &project], dry].concat());
            assert_eq!(ran.code, 64, "{}{}", ran.out, ran.err);
            assert!(ran.err.contains(told), "{told}: {}", ran.err);
        }
    }
    assert!(fake.given().bundles.is_empty() && fake.given().objects.is_empty());
}
