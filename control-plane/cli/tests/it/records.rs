//! Records that the fake control plane shows: of its audit log, and of functions.

use axum::extract::Query;
use axum::response::{IntoResponse as _, Response};
use casemate_api::audit::AuditRecord;
use casemate_api::log::{LogQuery, LogRecord};

/// An audit log with the given number of records, whose subjects are all the same.
pub(crate) fn audit_chain(length: u64, subject: &str) -> Vec<AuditRecord> {
    let mut chain: Vec<AuditRecord> = Vec::new();
    for seq in 1..=length {
        chain.push(AuditRecord::follow(chain.last(), seq, "a", "b", subject));
    }
    chain
}

/// Two old records; while following a third one and then the end of the stream.
pub(crate) async fn logs(Query(query): Query<LogQuery>) -> Response {
    let record = |seq: u64, message: &str| LogRecord {
        seq,
        time_ms: 1_000 * seq,
        node: "edge-1".parse().unwrap(),
        function: "web".parse().unwrap(),
        request: None,
        level: "info".into(),
        message: message.into(),
        failure: None,
    };
    let all = [
        record(1, "one"),
        record(2, "two \u{1b}[2Jcleared"),
        record(3, "three"),
    ];
    let count = if query.follow { 3 } else { 2 };
    let wanted = all[..count]
        .iter()
        .filter(|record| record.seq > query.since.unwrap_or(0));
    let lines: Vec<String> = wanted
        .map(|record| serde_json::to_string(record).unwrap() + "\n\n")
        .collect();
    lines.concat().into_response()
}
