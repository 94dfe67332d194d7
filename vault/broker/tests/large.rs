//! Data that is too large for one message: the vault sends all of it.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod fleet;
mod upstream;

use casemate_trust::id::Digest;
use casemate_trust::name::Name;
use casemate_trust::release::{MAX_PATTERNS, MAX_VARS_BYTES, Release, Var};
use casemate_trust::statement::{Manifest, Wanted};
use casemate_wire::control::vault::{ObjectKind, Verdict};
use fleet::{Fleet, KEY};
use upstream::Upstream;

/// The default ceiling of a tenant.
const FUNCTIONS: usize = 100;

/// A release with the most variables and paths that the judge accepts.
fn large(fleet: &Fleet, function: &Name) -> Release {
    let mut release = fleet.release();
    release.function = function.clone();
    (release.hosts, release.credentials) = (vec![], vec![]);
    release.perimeter.paths = (0..MAX_PATTERNS)
        .map(|n| format!("/{n:0>1000}").parse().unwrap())
        .collect();
    release.vars = vec![Var {
        name: "TEXT".parse().unwrap(),
        value: "x".repeat(MAX_VARS_BYTES - 4),
    }];
    release
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_with_many_large_functions_has_its_whole_plan_sent_also_after_a_restart() {
    let upstream = Upstream::start(KEY).await;
    let mut fleet = Fleet::start(&upstream).await;
    fleet.join().await;
    assert!(fleet.vault().plan().await.functions.is_empty());
    let releases: Vec<_> = (0..FUNCTIONS)
        .map(|n| large(&fleet, &format!("f{n}").parse().unwrap()))
        .collect();
    let bytes: usize = releases
        .iter()
        .map(|release| release.to_bytes().len())
        .sum();
    assert!(bytes > 6 << 20, "the plan must exceed one message: {bytes}");
    let wanted = |release: &Release| {
        let wanted = Wanted {
            release: Digest::of(&release.to_bytes()),
            fallbacks: vec![],
            pools: vec![fleet.pool.name.clone()],
        };
        (release.function.clone(), wanted)
    };
    let manifest = Manifest {
        functions: releases.iter().map(wanted).collect(),
        secrets: [].into(),
        ..fleet.manifest(1)
    };
    let missing = fleet.submit_manifest(&manifest).await;
    assert!(matches!(missing, Verdict::Missing { digests } if digests.len() == FUNCTIONS));
    for release in &releases {
        let taken = fleet
            .vault()
            .submit(ObjectKind::Release, release.to_bytes());
        assert_eq!(taken.await, Verdict::Accepted);
    }
    assert_eq!(fleet.submit_manifest(&manifest).await, Verdict::Accepted);
    let told = fleet.vault().plan().await;
    assert_eq!(told.functions.len(), FUNCTIONS);
    for release in &releases {
        let function = told
            .functions
            .iter()
            .find(|function| function.function == release.function.as_str())
            .unwrap();
        assert_eq!(function.release, Digest::of(&release.to_bytes()).0);
        assert_eq!(function.vars[0].1, release.vars[0].value);
    }
    fleet.kill_and_restart().await;
    assert_eq!(fleet.vault().plan().await, told);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_does_not_quote_a_megabyte() {
    let upstream = Upstream::start(KEY).await;
    let mut fleet = Fleet::start(&upstream).await;
    fleet.join().await;
    // The reason quotes an unknown member.
    let statement = format!("{{\"{}\":1}}", "x".repeat(1_000_000));
    let verdict = fleet
        .vault()
        .submit(ObjectKind::Manifest, statement.into())
        .await;
    assert!(
        matches!(&verdict, Verdict::Refused { code, message } if code == "statement_malformed" && message.len() <= 4096),
        "{verdict:?}"
    );
}
