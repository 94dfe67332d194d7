//! Statements of a machine whose clock is wrong.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

use casemate_trust::statement::Statement as _;
use support::fleet::{key, pool};
use support::{Control, Fleet};

#[tokio::test]
async fn a_statement_from_the_future_is_refused_with_both_times() {
    let control = Control::new().await;
    let fleet = Fleet::new(&control).await;
    let operator = control.operator();
    let now = std::time::SystemTime::now();
    let now = now.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let dated = |issued: u64| {
        let mut pool = pool(fleet.id, "main", 2);
        pool.issued = issued;
        pool.sign(&[&key(1)]).to_bytes()
    };
    let post = async |issued| operator.ask("POST", "/v1/statements", dated(issued)).await;
    let early = post(now + 500 * 24 * 60 * 60).await;
    let text = String::from_utf8(early.body.clone()).unwrap();
    assert_eq!(early.refused(422), "statement_from_future");
    assert_eq!(text.matches(" UTC").count(), 2, "{text}");
    // The refusal has changed nothing: a statement with a correct date is accepted.
    post(now + 60).await.ok();
}
