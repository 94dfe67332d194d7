//! Logs from a node, over real QUIC, to their readers.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

use casemate_api::audit::AuditPage;
use casemate_api::token::{MadeToken, NewToken, Scope};
use casemate_push::{LogEntry, LogLevel, NodeEnd};
use casemate_trust::id::TenantId;
use http_body_util::BodyExt as _;
use support::fleet::{key, name, tenant_path};
use support::node::{hello, member, serving};
use support::{Control, Fleet, Node};

/// The next line of a followed log.
async fn next_line(following: &mut hyper::body::Incoming) -> bytes::Bytes {
    let frame = following.frame().await.unwrap().unwrap();
    frame.into_data().unwrap()
}

fn entry(message: &str, tenant: TenantId) -> LogEntry {
    LogEntry {
        tenant,
        function: name("web"),
        request: Some("r1".into()),
        level: LogLevel::Info,
        message: message.into(),
        time_ms: 1,
        failure: None,
    }
}

#[tokio::test]
async fn a_reflected_credential_is_audited_for_a_tenant_that_runs_there() {
    let control = Control::new().await;
    let (fleet, tenant, mut node) = serving(&control).await;
    let path = tenant_path(&fleet.tenant.id, "logs?follow=true");
    let mut following = tenant.open("GET", &path, vec![]).await.into_body();
    let reflected = LogEntry {
        failure: Some("credential_reflected".into()),
        ..entry(
            "answers of the upstream held the secret KEY",
            fleet.tenant.id,
        )
    };
    let other = TenantId([3; 32]);
    node.end.log(LogEntry {
        tenant: other,
        ..reflected.clone()
    });
    node.end.log(reflected);
    node.write().await;
    following.frame().await.unwrap().unwrap();
    let page: AuditPage = control.operator().get("/v1/audit").await.ok().json();
    let record = page.records.last().unwrap();
    assert_eq!(
        (record.actor.as_str(), record.action.as_str()),
        ("node edge-1", "credential.use")
    );
    assert!(record.subject.starts_with("credential_reflected"));
    let names_other = |subject: &str| subject.contains(&other.to_string());
    assert!(
        !page.records.iter().any(|one| names_other(&one.subject)),
        "a node may not report on other functions"
    );
}

#[tokio::test]
async fn logs_reach_their_tenant_and_follow() {
    let control = Control::new().await;
    let (fleet, tenant, mut node) = serving(&control).await;
    let path = tenant_path(&fleet.tenant.id, "logs");
    let mut following = tenant
        .open("GET", &format!("{path}?follow=true"), vec![])
        .await
        .into_body();
    node.end.log(entry("first", fleet.tenant.id));
    node.end.log(entry("not theirs", TenantId([3; 32])));
    node.write().await;
    let line = next_line(&mut following).await;
    let record: casemate_api::log::LogRecord = serde_json::from_slice(&line).unwrap();
    assert_eq!(
        (record.message.as_str(), record.node.as_str(), record.seq),
        ("first", "edge-1", 1)
    );
    node.end.log(entry("second", fleet.tenant.id));
    node.write().await;
    let line = next_line(&mut following).await;
    assert!(String::from_utf8_lossy(&line).contains("second"));
    let since = tenant
        .get(&format!("{path}?since=1&function=web"))
        .await
        .ok();
    assert_eq!(since.body.iter().filter(|byte| **byte == b'\n').count(), 1);
    assert!(
        tenant
            .get(&format!("{path}?function=other"))
            .await
            .ok()
            .body
            .is_empty()
    );
    assert_eq!(
        tenant.get(&format!("{path}?folow=true")).await.refused(400),
        "bad_request"
    );
}

#[tokio::test]
async fn a_revoked_token_stops_reading_a_log() {
    let control = Control::new().await;
    let fleet = Fleet::new(&control).await;
    let operator = control.operator();
    fleet
        .deploy(&control.client(&fleet.tenant_token), 1, b"bundle one")
        .await;
    let mut node = member(&control, &fleet, "edge-1", &key(20)).await;
    node.sync().await;
    let new = NewToken {
        scope: Scope::Tenant(fleet.tenant.id),
        label: "reader".into(),
        expires: None,
    };
    let reader: MadeToken = operator.post("/v1/tokens", &new).await.ok().json();
    let path = tenant_path(&fleet.tenant.id, "logs?follow=true");
    let client = control.client(&reader.token);
    let mut following = client.open("GET", &path, vec![]).await.into_body();
    let entry = |message: &str| LogEntry {
        tenant: fleet.tenant.id,
        function: name("web"),
        request: None,
        level: LogLevel::Info,
        message: message.into(),
        time_ms: 1,
        failure: None,
    };
    node.end.log(entry("before"));
    node.write().await;
    assert!(following.frame().await.unwrap().is_ok());
    let token = format!("/v1/tokens/{}", reader.id);
    operator.delete(&token).await.ok();
    node.end.log(entry("after"));
    node.write().await;
    assert!(following.frame().await.is_none(), "it continues to read");
}

#[tokio::test]
async fn logs_outlive_a_restart_and_can_be_searched() {
    let mut control = Control::new().await;
    let (fleet, tenant, mut node) = serving(&control).await;
    let entry =
        |request: &str, message: &str, time_ms| of_request(&fleet, request, message, time_ms);
    let path = tenant_path(&fleet.tenant.id, "logs");
    let mut following = tenant
        .open("GET", &format!("{path}?follow=true"), vec![])
        .await
        .into_body();
    node.end.log(entry("r1", "GET /a 200 12 us", 1000));
    node.end.log(entry("r2", "GET /b 503 12 us", 2000));
    node.end.log(entry("r2", "it has failed", 2001));
    node.write().await;
    let mut seen = String::new();
    while seen.lines().count() < 3 {
        let frame = following.frame().await.unwrap().unwrap();
        seen += std::str::from_utf8(&frame.into_data().unwrap()).unwrap();
    }
    drop(following);
    drop(node);
    control.stop().await;
    control.start().await;
    let tenant = control.client(&fleet.tenant_token);
    let ask = async |query: &str| {
        let answer = tenant.get(&format!("{path}?{query}")).await.ok();
        let text = String::from_utf8(answer.body).unwrap();
        let records = text.lines().map(|line| serde_json::from_str(line).unwrap());
        records.collect::<Vec<casemate_api::log::LogRecord>>()
    };
    let kept = ask("").await;
    let lines: String = kept
        .iter()
        .map(|record| serde_json::to_string(record).unwrap() + "\n")
        .collect();
    assert_eq!(lines, seen);
    for (query, requests) in [
        ("status=5xx", vec!["r2"]),
        ("request=r2", vec!["r2", "r2"]),
        ("grep=failed", vec!["r2"]),
        ("since_ms=2000&until_ms=2001", vec!["r2"]),
        ("node=edge-2", vec![]),
        ("level=warn", vec![]),
    ] {
        let found = ask(query).await;
        let found: Vec<_> = found
            .iter()
            .map(|record| record.request.as_deref().unwrap())
            .collect();
        assert_eq!(found, requests, "{query}");
    }
    let odd = tenant.get(&format!("{path}?status=9xx")).await;
    assert_eq!(odd.refused(400), "bad_request");
    let since = kept.last().unwrap().seq;
    numbers_go_on(&control, &fleet, since).await;
}

/// A record of a request.
fn of_request(fleet: &Fleet, request: &str, message: &str, time_ms: u64) -> LogEntry {
    LogEntry {
        tenant: fleet.tenant.id,
        function: name("web"),
        request: Some(request.into()),
        level: LogLevel::Info,
        message: message.into(),
        time_ms,
        failure: None,
    }
}

/// Numbers go on over a restart, so that whoever follows behind the last one misses nothing.
async fn numbers_go_on(control: &Control, fleet: &Fleet, since: u64) {
    let tenant = control.client(&fleet.tenant_token);
    let path = tenant_path(&fleet.tenant.id, "logs");
    let mut node = Node::connect(
        control,
        &key(20),
        NodeEnd::member(hello("edge-1", &key(20), fleet.id)),
    )
    .await;
    node.sync().await;
    node.end
        .log(of_request(fleet, "r3", "GET /c 200 12 us", 3000));
    node.write().await;
    let mut following = tenant
        .open("GET", &format!("{path}?follow=true&since={since}"), vec![])
        .await
        .into_body();
    let line = next_line(&mut following).await;
    let record: casemate_api::log::LogRecord = serde_json::from_slice(&line).unwrap();
    assert!(record.seq > since && record.request.as_deref() == Some("r3"));
}
