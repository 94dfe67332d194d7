//! Tests with a control plane that lies, has another identity, or is away, and with a node that
//! refuses.

use casemate_trust::id::{Digest, FleetId};
use casemate_trust::key::SigningKey;
use casemate_trust::statement::{Manifest, OnlineKey, Root, Statement as _};

use super::fake::Fake;
use super::fleet::ask;
use super::records::audit_chain;
use super::world::{Person, World, world};

#[tokio::test(flavor = "multi_thread")]
async fn another_key_at_the_same_address_is_not_the_control_plane() {
    let World {
        fake, tenant, _dir, ..
    } = world().await;
    let impostor = Fake::start(4).await;
    {
        // The impostor shows everything that the right control plane shows.
        let (mut other, given) = (impostor.given(), fake.given());
        (other.roots, other.online) = (given.roots.clone(), given.online.clone());
    }
    let connection = tenant.home.join("connection.json");
    let text = std::fs::read_to_string(&connection).unwrap();
    std::fs::write(
        &connection,
        text.replace(&fake.address.to_string(), &impostor.address.to_string()),
    )
    .unwrap();
    tenant
        .run(&["--json", "status"])
        .ended(76, "not_the_control_plane");
    assert!(impostor.given().heard.is_empty(), "it heard the token");
    let login = format!("https://{}#{}", impostor.address, "0".repeat(64));
    let stranger = Person {
        home: tenant.home.with_file_name("stranger"),
        folder: tenant.folder.clone(),
    };
    stranger
        .run(&["login", &login, "--token", "casemate_x"])
        .ended(76, "fleet_other");
    assert!(impostor.given().heard.is_empty(), "it heard the token");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_root_keeps_a_new_home_out_until_the_next_one_is_signed() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::start(3).await;
    let key = |seed| SigningKey::from_seed(&[seed; 32]).unwrap();
    let root = |version: u8, expires| Root {
        version: version.into(),
        keys: vec![key(version).public()],
        threshold: 1,
        issued: 1,
        expires,
    };
    let (first, second) = (
        root(1, 2).sign(&[&key(1)]),
        root(2, 4_000_000_000).sign(&[&key(1), &key(2)]),
    );
    let fleet = FleetId(first.payload_digest().0);
    let public = fake.key.public();
    let online = OnlineKey {
        fleet,
        version: 1,
        liveness: public,
        quic: public,
        api: public,
        issued: 1,
        expires: 4_000_000_000,
    };
    let person = Person::new(dir.path(), "tenant");
    let address = format!("https://{}#{fleet}", fake.address);
    let login = ["login", &address, "--token", "casemate_x"];
    fake.given().roots = vec![first];
    fake.given().online = Some(online.sign(&[&key(1)]));
    let ran = person.run(&login);
    assert_eq!(ran.code, 76, "{}", ran.err);
    for said in ["root_expired", "has expired", "the next root"] {
        assert!(ran.err.contains(said), "{}", ran.err);
    }
    assert!(fake.given().heard.is_empty(), "it heard the token");
    fake.given().roots.push(second);
    fake.given().online = Some(online.sign(&[&key(2)]));
    let ran = person.run(&login);
    assert_eq!(ran.code, 0, "{}", ran.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_by_the_control_plane_changes_nothing() {
    let World {
        fake, tenant, _dir, ..
    } = world().await;
    let project = tenant.deploys("web", "web.shop.test", "");
    tenant.source("web", 2);
    let second = tenant.json(&["deploy", "--project", &project]);
    fake.given().show_manifest = Some(0);
    let ran = tenant.run(&["--json", "status"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(
        ran.err.contains("restored from an older copy"),
        "{}",
        ran.err
    );
    let status: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(status["manifest_version"], 2);
    assert_eq!(status["functions"][0]["release"], second["release"]);
    let id = *fake.given().manifests.keys().next().unwrap();
    assert_eq!(
        fake.given().manifests[&id].len(),
        2,
        "a reading command signs nothing"
    );
    // The next manifest is built on the one that this home remembers.
    let renewed = tenant.json(&["renew"]);
    assert_eq!(renewed["manifest"], 3);
    let newest = fake.given().manifests[&id].last().cloned().unwrap();
    let wanted = Manifest::read(&newest).unwrap().functions;
    let release = serde_json::json!(wanted.values().next().unwrap().release);
    assert_eq!(release, second["release"]);
    // A control plane that shows nothing deletes nothing either.
    fake.given().show_manifest = Some(99);
    let ran = tenant.run(&["deploy", "--project", &project]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(
        ran.err
            .contains("no manifest, and manifest 3 is the newest"),
        "{}",
        ran.err
    );
    let newest = fake.given().manifests[&id].last().cloned().unwrap();
    assert_eq!(Manifest::read(&newest).unwrap().version, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_tenant_under_the_name_of_another_gets_nothing_signed() {
    let World {
        fake,
        operator,
        tenant,
        login,
        _dir,
    } = world().await;
    // One key signs for both tenants: only the name tells them apart.
    let key = tenant.json(&["tenant", "key"]);
    let key = key["public_key"].as_str().unwrap();
    operator.json(&["tenant", "add", "evil", "--key", key, "--host", "evil.test"]);
    let stranger = Person::new(_dir.path(), "colleague");
    stranger.json_with(&["login", &login], "casemate_1");
    fake.given().swap_tenants = true;
    let before = fake.given().tenants.clone();
    let said = [
        (&operator, "this home knows it as"),
        (&tenant, "this home knows it as"),
        (&stranger, "that id was signed for the tenant evil"),
    ];
    for (person, why) in said {
        person.run(&["tenant", "show", "shop"]).ended(76, why);
    }
    for args in [
        &["tenant", "hosts", "shop", "--add", "pay.test"][..],
        &["tenant", "hosts", "shop"],
        &["token", "create", "--scope", "tenant", "--tenant", "shop"],
    ] {
        let ran = operator.run(args);
        assert_eq!(ran.code, 76, "{args:?}\n{}{}", ran.out, ran.err);
    }
    let project = tenant.project("web", "web.shop.test", "");
    let deploy = ["deploy", "--project", &project, "--tenant", "shop"];
    let ran = tenant.run(&deploy);
    assert_eq!(ran.code, 76, "{}", ran.err);
    assert_eq!(fake.given().tenants, before);
    assert!(fake.given().manifests.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_result_of_an_earlier_try_is_not_published_for_a_different_request() {
    let World {
        fake,
        operator,
        tenant,
        _dir,
        ..
    } = world().await;
    let key = |person: &Person| {
        let made = person.json(&["tenant", "key", "--plain-keys"]);
        let text = |name: &str| made[name].as_str().unwrap().to_owned();
        (text("public_key"), text("fingerprint"))
    };
    let (right, _) = key(&tenant);
    let (wrong, fingerprint) = key(&Person::new(_dir.path(), "wrong"));
    let add = |name, key, more: &[&'static str]| {
        let host = format!("{name}.test");
        let args = ["tenant", "add", name, "--key", key, "--host", &host];
        operator.run(&[&args[..], more].concat())
    };
    fake.given().refuse_statements = true;
    assert_eq!(add("mart", &wrong, &[]).code, 69);
    assert_eq!(add("again", &right, &[]).code, 69);
    fake.given().refuse_statements = false;
    for more in [&[][..], &["--max-heap-mib", "64"]] {
        let ran = add("mart", &right, more);
        assert_eq!(ran.code, 73, "{}{}", ran.out, ran.err);
        assert!(ran.err.contains(&fingerprint), "{}", ran.err);
    }
    let other_hosts = add("again", &right, &["--host", "more.test"]);
    assert_eq!(other_hosts.code, 73, "{}", other_hosts.err);
    assert_eq!(
        fake.given().tenants.len(),
        1,
        "only shop was ever published"
    );
    // The way out: the same tenant with the right key, and the wrong key can sign nothing.
    let ran = add("mart", &right, &["--replace"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    let shown = operator.json(&["tenant", "show", "mart"]);
    assert_eq!(shown["keys"]["keys"], serde_json::json!([right]));
    // A repeated request with the same content is uploaded.
    let ran = add("again", &right, &[]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    // A tenant that the control plane hides does not lose its host to another one.
    fake.given().tenants.clear();
    let ran = add("shop", &wrong, &[]);
    assert_eq!(ran.code, 73, "{}{}", ran.out, ran.err);
    assert!(fake.given().tenants.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_node_gets_no_key_whatever_the_control_plane_answers() {
    let World {
        fake,
        operator,
        _dir,
        ..
    } = world().await;
    for (seed, node) in [
        (8, "good"),
        (9, "bad-404"),
        (10, "bad-500"),
        (11, "bad-away"),
    ] {
        let token = operator.json(&["node", "token", node]);
        ask(&fake, token["token"].as_str().unwrap(), seed);
        operator.json(&["node", "admit", node]);
    }
    // The control plane claims that nothing was granted, so it is given all grants again.
    fake.given().grants.clear();
    fake.given().refuse_revoking = Some((404, "not_found"));
    operator
        .run(&["node", "revoke", "bad-404", "--yes"])
        .ended(0, "knows no node bad-404");
    fake.given().refuse_revoking = Some((500, "internal"));
    operator
        .run(&["node", "revoke", "bad-500", "--yes"])
        .ended(69, "gets no more keys");
    let connection = operator.home.join("connection.json");
    let text = std::fs::read_to_string(&connection).unwrap();
    std::fs::write(
        &connection,
        text.replace(&fake.address.to_string(), "127.0.0.1:1"),
    )
    .unwrap();
    let ran = operator.run(&["node", "revoke", "bad-away", "--yes"]);
    assert_eq!(ran.code, 69, "{}", ran.err);
    std::fs::write(&connection, text).unwrap();
    let rotated = operator.json(&["pool", "rotate", "main"]);
    assert_eq!(rotated["nodes"], serde_json::json!(["good"]));
    let good = SigningKey::from_seed(&[8; 32]).unwrap().public();
    let grants = fake.given().grants.clone();
    assert!(!grants.is_empty() && grants.iter().all(|grant| grant.node_key == good));
    // The node is not admitted again with the token that it joined with.
    operator
        .run(&["node", "admit", "bad-404", "--wait", "0"])
        .ended(76, "token_unknown");
    // A node that neither side knows is a mistake in the name.
    fake.given().refuse_revoking = Some((404, "not_found"));
    let ran = operator.run(&["node", "revoke", "edge-99", "--yes"]);
    assert_eq!(ran.code, 66, "{}", ran.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_under_the_name_of_another_node_is_not_admitted() {
    let World {
        fake,
        operator,
        _dir,
        ..
    } = world().await;
    let stolen = operator.json(&["node", "token", "edge-9"]);
    operator.json(&["node", "token", "edge-1"]);
    ask(&fake, stolen["token"].as_str().unwrap(), 9);
    fake.given().joins[0].node = "edge-1".parse().unwrap();
    let ran = operator
        .run(&["node", "admit", "edge-1", "--wait", "0"])
        .ended(76, "label_other");
    assert!(ran.err.contains("which is for node edge-9"), "{}", ran.err);
    // It is not admitted under its own name either, once the token is known to be stolen.
    fake.given().joins[0].node = "edge-9".parse().unwrap();
    let cancelled = operator.json(&["node", "token", "edge-9", "--cancel"]);
    assert_eq!(cancelled["cancelled"], 1);
    let ran = operator.run(&["node", "admit"]);
    assert!(ran.err.contains("token_unknown"), "{}", ran.err);
    assert!(fake.given().grants.is_empty());
    let again = operator.run(&["node", "token", "edge-9", "--cancel"]);
    assert_eq!(again.code, 66, "{}", again.err);
    // The other node's token is unchanged.
    assert_eq!(
        operator.json(&["node", "token", "edge-1", "--cancel"])["cancelled"],
        1
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_refuses_is_named() {
    let World {
        fake, tenant, _dir, ..
    } = world().await;
    fake.given().nodes = vec!["edge-1", "edge-2"];
    fake.given().refuses = Some("edge-2");
    let project = tenant.project("web", "web.shop.test", "");
    let ran = tenant.run(&["deploy", "--project", &project]);
    assert_eq!(ran.code, 82, "{}", ran.err);
    assert!(
        ran.err
            .contains("node edge-2 refuses manifest 1 (release_malformed)"),
        "{}",
        ran.err
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_hold_another_manifest_do_not_run_ours() {
    let World {
        fake, tenant, _dir, ..
    } = world().await;
    fake.given().nodes = vec!["edge-1"];
    let project = tenant.project("web", "web.shop.test", "");
    // A backup was restored: the nodes hold a manifest that neither this control plane nor this
    // home has seen.
    fake.given().hold = Some((7, Digest([7; 32])));
    let ran = tenant
        .run(&["deploy", "--project", &project])
        .ended(82, "edge-1 holds manifest 7");
    assert!(ran.err.contains("renew --from-memory"), "{}", ran.err);
    // The same number does not mean the same manifest.
    fake.given().hold = Some((2, Digest([7; 32])));
    let ran = tenant.run(&["renew", "--wait", "1"]);
    assert_eq!(ran.code, 83, "{}{}", ran.out, ran.err);
    fake.given().refuses = Some("edge-1");
    fake.given().hold = Some((3, Digest([7; 32])));
    let ran = tenant.run(&["renew"]);
    assert_eq!(ran.code, 82, "{}{}", ran.out, ran.err);
    assert!(
        ran.err.contains("refuses manifest 3 (release_malformed)"),
        "{}",
        ran.err
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_audit_chain_that_was_cut_or_computed_anew_is_found() {
    let World {
        fake,
        operator,
        _dir,
        ..
    } = world().await;
    fake.given().audit = audit_chain(5, "c");
    assert_eq!(operator.json(&["audit", "--verify"])["verified"], 5);
    for (forged, why) in [
        (audit_chain(4, "c"), "it ends with record 4"),
        (Vec::new(), "it ends with record 0"),
        (audit_chain(5, "d"), "record 5 differs"),
        (audit_chain(9, "d"), "record 5 differs"),
    ] {
        fake.given().audit = forged;
        operator.run(&["audit", "--verify"]).ended(76, why);
    }
    // The refused chain has not replaced the chain to compare with.
    fake.given().audit = audit_chain(7, "c");
    assert_eq!(operator.json(&["audit", "--verify"])["verified"], 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_terminal_escape_of_others_is_printed() {
    const EVIL: &str = "\u{1b}[31mred\u{1b}]0;title\u{7}\u{1b}[2J\r\u{9b}1A\u{202e}x";
    let World {
        fake,
        operator,
        tenant,
        _dir,
        ..
    } = world().await;
    let token = operator.json(&["node", "token", "edge-1"]);
    ask(&fake, token["token"].as_str().unwrap(), 8);
    operator.json(&["node", "admit", "edge-1"]);
    let project = tenant.project("web", "web.shop.test", "");
    {
        let mut given = fake.given();
        given.evil = Some(EVIL);
        given.refuse_revoking = Some((403, EVIL));
        given.nodes = vec!["edge-1"];
        given.refuses = Some("edge-1");
    }
    let cases: &[(&Person, &[&str], i32)] = &[
        (&operator, &["node", "list"], 0),
        (&operator, &["node", "show", "edge-1"], 0),
        (&operator, &["node", "revoke", "edge-1", "--yes"], 77),
        (&operator, &["token", "list"], 0),
        (&operator, &["token", "create", "--scope", "operator"], 76),
        (&tenant, &["deploy", "--project", &project], 82),
        (&tenant, &["status"], 0),
    ];
    for (person, args, code) in cases {
        for json in [&[][..], &["--json"]] {
            let ran = person.run_in_colour(&[json, args].concat());
            assert_eq!(ran.code, *code, "{args:?}\n{}{}", ran.out, ran.err);
            let said = ran.out + &ran.err;
            for obeyed in [
                "\u{1b}[31mred",
                "\u{1b}]",
                "\u{1b}[2J",
                "\r",
                "\u{7}",
                "\u{9b}",
                "\u{202e}",
            ] {
                assert!(
                    !said.contains(obeyed),
                    "{args:?}: {obeyed:?} is in {said:?}"
                );
            }
        }
    }
    // The JSON output still has every character.
    let shown = operator.json(&["node", "show", "edge-1"]);
    assert_eq!(shown["refused"][0]["code"], EVIL);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_control_plane_the_exit_code_is_69() {
    let World {
        tenant, fake, _dir, ..
    } = world().await;
    let connection = tenant.home.join("connection.json");
    let text = std::fs::read_to_string(&connection).unwrap();
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    std::fs::write(
        &connection,
        text.replace(&fake.address.to_string(), &free.to_string()),
    )
    .unwrap();
    tenant.run(&["status"]).ended(69, "does not answer");
}
