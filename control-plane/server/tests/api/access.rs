//! Whose token reaches what.

use super::*;

#[tokio::test]
async fn a_tenants_token_reaches_nothing_of_another_tenant() {
    let control = Control::new().await;
    let fleet = Fleet::new(&control).await;
    let other = tenant(fleet.id, "other", 11);
    post(&control, &other.sign(&[&key(1)])).await.ok();
    let client = control.client(&fleet.tenant_token);
    for rest in ["", "/manifest", "/status", "/logs", "/objects/"] {
        let digest = if rest == "/objects/" {
            Digest::of(b"x").to_string()
        } else {
            String::new()
        };
        let path = format!("/v1/tenants/{}{rest}{digest}", other.id);
        let method = if rest == "/manifest" { "PUT" } else { "GET" };
        assert_eq!(
            client.ask(method, &path, vec![]).await.refused(403),
            "forbidden",
            "{path}"
        );
    }
    // The tenant's own path does not help either: another's manifest, another's release, another's
    // statement.
    let mut manifest = fleet.manifest(1, b"", None);
    manifest.tenant = other.id;
    let refused = client
        .put(
            &tenant_path(&fleet.tenant.id, "manifest"),
            manifest.sign(&[&key(11)]).to_bytes(),
        )
        .await;
    assert_eq!(refused.refused(403), "forbidden");
    let release = fleet.release(&other, b"bundle").to_bytes();
    let object = tenant_path(
        &fleet.tenant.id,
        &format!("objects/{}", Digest::of(&release)),
    );
    assert_eq!(
        client.put(&object, release).await.refused(422),
        "object_malformed"
    );
    let rotated = Tenant {
        version: 2,
        current: KeySet::single(key(12).public()),
        issued: 2,
        ..other
    };
    let refused = client
        .ask(
            "POST",
            "/v1/statements",
            rotated.sign(&[&key(11)]).to_bytes(),
        )
        .await;
    assert_eq!(refused.refused(403), "forbidden");
    its_own_keys_and_no_hosts(&fleet, &client).await;
}

/// A tenant lists itself alone, and changes its own keys and nothing else.
async fn its_own_keys_and_no_hosts(fleet: &Fleet, client: &support::Client) {
    let seen: TenantList = client.get("/v1/tenants").await.ok().json();
    assert_eq!(
        seen.tenants
            .iter()
            .map(|tenant| tenant.id)
            .collect::<Vec<_>>(),
        [fleet.tenant.id]
    );
    // The tenant may change its own keys, but not its hosts.
    let own = Tenant {
        version: 2,
        current: KeySet::single(key(12).public()),
        issued: 2,
        ..fleet.tenant.clone()
    };
    let wider = Tenant {
        hosts: vec!["*.shop.test".parse().unwrap()],
        ..own.clone()
    };
    let refused = client
        .ask("POST", "/v1/statements", wider.sign(&[&key(10)]).to_bytes())
        .await;
    assert_eq!(refused.refused(422), "tenant_scope_widened");
    client
        .ask("POST", "/v1/statements", own.sign(&[&key(10)]).to_bytes())
        .await
        .ok();
}

#[tokio::test]
async fn every_endpoint_exists_and_requires_authorisation() {
    let control = Control::new().await;
    let fleet = Fleet::new(&control).await;
    let read_only = token(&control.operator(), Scope::ReadOnly).await;
    for endpoint in ENDPOINTS {
        let id = fleet.tenant.id.to_string();
        let digest = Digest::of(b"none").to_string();
        let path = endpoint
            .path
            .replace("{id}", &id)
            .replace("{digest}", &digest);
        let path = path.replace("{name}", "nobody").replace("{token}", "none");
        let method = endpoint.method.as_str();
        let (anybody, wrong) = (control.client(""), control.client("casemate_wrong"));
        let is_public = endpoint.access == casemate_api::endpoint::Access::Public;
        for client in [anybody, wrong] {
            let status = client.ask(method, &path, vec![]).await.status;
            assert_eq!(status, if is_public { 200 } else { 401 }, "{method} {path}");
        }
        if !matches!(endpoint.method, Method::Get | Method::Head) {
            let status = control
                .client(&read_only)
                .ask(method, &path, vec![])
                .await
                .status;
            assert_eq!(status, 403, "{method} {path}");
        }
        let who = if endpoint.access.allows(&Scope::Operator, None) {
            &control.operator
        } else {
            &fleet.tenant_token
        };
        let answer = control.client(who).ask(method, &path, vec![]).await;
        assert!(
            ![401, 403, 405, 500].contains(&answer.status),
            "{method} {path}: {}",
            answer.status
        );
    }
    let operator = control.operator();
    assert_eq!(operator.get("/v1/nothing").await.refused(404), "not_found");
    assert_eq!(
        operator.delete("/v1/fleet").await.refused(405),
        "method_not_allowed"
    );
}

#[tokio::test]
async fn the_key_of_the_certificate_is_the_one_that_init_printed() {
    let control = Control::new().await;
    let other = support::Client::new(&control.api, key(1).public(), "");
    let tried = tokio::spawn(async move { other.get("/healthz").await.status }).await;
    assert!(tried.is_err(), "a client that pins another key connected");
    assert_eq!(control.client("").get("/healthz").await.status, 200);
    let public = std::fs::read(control.state().join("public.json")).unwrap();
    let public: casemate_api::fleet::PublicKeys = serde_json::from_slice(&public).unwrap();
    assert_eq!(public, control.keys);
}

#[tokio::test]
async fn every_answer_names_the_version_of_the_control_plane() {
    let control = Control::new().await;
    let expected = concat!("casemate-control/", env!("CARGO_PKG_VERSION"));
    for (path, status) in [("/v1/fleet", 200), ("/v1/tokens", 401), ("/v9/later", 404)] {
        let answer = control.client("").open("GET", path, Vec::new()).await;
        assert_eq!(answer.status().as_u16(), status);
        assert_eq!(answer.headers()["server"], expected, "{path}");
    }
}
