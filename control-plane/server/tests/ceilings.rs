//! A tenant's limits at the control plane.
// A panic is how a test fails.
#![allow(clippy::unwrap_used)]

mod support;

use casemate_api::tenant::TenantStatus;
use casemate_trust::id::Digest;
use casemate_trust::key::SigningKey;
use casemate_trust::release::{EgressRule, Release, Scheme};
use casemate_trust::statement::{EgressCeiling, KeySet, Statement as _, Tenant};
use support::client::Client;
use support::fleet::{LATER, key, name, tenant_path};
use support::{Control, Fleet};

async fn publish(control: &Control, tenant: &Tenant) {
    let statement = tenant.sign(&[&key(1)]).to_bytes();
    let operator = control.operator();
    operator.ask("POST", "/v1/statements", statement).await.ok();
}

/// Uploads a release with its bundle and the manifest that names it; returns status and code.
async fn deploy(fleet: &Fleet, client: &Client, version: u64, release: &Release) -> (u16, String) {
    let (bundle, release) = (b"bundle", release.to_bytes());
    client
        .put(&format!("/v1/bundles/{}", Digest::of(bundle)), bundle)
        .await
        .ok();
    let object = tenant_path(
        &fleet.tenant.id,
        &format!("objects/{}", Digest::of(&release)),
    );
    client.put(&object, release.clone()).await.ok();
    let manifest = fleet.manifest(version, &release, None).sign(&[&key(10)]);
    let at = tenant_path(&fleet.tenant.id, "manifest");
    let answer = client.put(&at, manifest.to_bytes()).await;
    match answer.status {
        200..300 => (200, String::new()),
        status => (status, answer.refused(status)),
    }
}

#[tokio::test]
async fn a_new_release_beyond_the_egress_ceiling_is_refused_and_an_accepted_one_stays() {
    let control = Control::new().await;
    let fleet = Fleet::new(&control).await;
    let client = control.client(&fleet.tenant_token);
    let ceiling = |version, hosts: &[&str]| Tenant {
        version,
        egress: Some(EgressCeiling {
            hosts: hosts.iter().map(|host| host.parse().unwrap()).collect(),
            ports: vec![443],
            ..EgressCeiling::default()
        }),
        ..fleet.tenant.clone()
    };
    let release = |host: &str, port| {
        let mut release = fleet.release(&fleet.tenant, b"bundle");
        release.egress.push(EgressRule {
            scheme: Scheme::Https,
            host: host.parse().unwrap(),
            port,
            methods: vec![],
            paths: vec![],
            ca: None,
        });
        release
    };
    publish(&control, &ceiling(2, &["api.test"])).await;
    for (host, port) in [("evil.test", 443), ("api.test", 8443)] {
        assert_eq!(
            deploy(&fleet, &client, 1, &release(host, port)).await,
            (422, "release_egress_over_ceiling".to_owned()),
            "{host}:{port}"
        );
    }
    let accepted = (200, String::new());
    let within = release("api.test", 443);
    assert_eq!(deploy(&fleet, &client, 1, &within).await, accepted);
    // The operator lowers the ceiling: accepted releases stay in the tenant's next manifests, a new
    // one is refused.
    publish(&control, &ceiling(3, &["other.test"])).await;
    assert_eq!(deploy(&fleet, &client, 2, &within).await, accepted);
    let mut changed = within;
    changed.entry = "other.js".into();
    let refused = deploy(&fleet, &client, 3, &changed).await;
    assert_eq!(refused.1, "release_egress_over_ceiling");
}

#[tokio::test]
async fn a_tenant_sees_which_of_its_hosts_are_another_tenants_and_not_whose() {
    let control = Control::new().await;
    let fleet = Fleet::new(&control).await;
    let client = control.client(&fleet.tenant_token);
    fleet.deploy(&client, 1, b"bundle").await;
    let lost = async || {
        let status = client.get(&tenant_path(&fleet.tenant.id, "status")).await;
        let text = String::from_utf8(status.body).unwrap();
        assert!(!text.contains("mart"), "{text}");
        let status: TenantStatus = serde_json::from_str(&text).unwrap();
        status.functions[&name("web")]
            .hosts_of_other_tenants
            .clone()
    };
    let other = |admitted: Option<u64>, seed: u8| {
        let keys = KeySet::single(SigningKey::from_seed(&[seed; 32]).unwrap().public());
        let host = fleet.tenant.hosts[0].clone();
        let tenant = Tenant::first(
            fleet.id,
            name(&format!("mart-{seed}")),
            keys,
            vec![host],
            1,
            LATER,
        );
        Tenant { admitted, ..tenant }
    };
    // `Fleet` admits its tenant at second 1.
    publish(&control, &other(Some(2), 40)).await;
    assert!(lost().await.is_empty(), "a later tenant takes nothing");
    publish(&control, &other(Some(0), 41)).await;
    assert_eq!(lost().await, ["shop.test"]);
}
