//! The contract of every backend, as a function that panics when a backend breaks it.

use std::time::Duration;

use crate::{
    Change, Compare, HISTORY_REVISIONS, MAX_COMMIT_ITEMS, MAX_KEY_BYTES, MAX_RANGE,
    MAX_VALUE_BYTES, Store, StoreError,
};

/// How long a commit may take to reach a watch.
const WATCH_TIMEOUT: Duration = Duration::from_secs(10);

/// Checks an empty store.
///
/// # Panics
/// It does not conform.
pub async fn check(store: &impl Store) {
    assert_eq!(store.revision(), 0, "expected an empty store");
    revisions_count_commits(store).await;
    comparisons_hold_or_nothing_changes(store).await;
    ranges_are_sorted_and_paged(store).await;
    bounds_are_kept(store).await;
    only_one_of_many_wins(store).await;
    watches_see_each_commit_once(store).await;
    a_watch_that_is_too_slow_is_told(store).await;
}

async fn commit(store: &impl Store, changes: Vec<Change>) -> u64 {
    store
        .commit(vec![], changes)
        .await
        .expect("a commit without comparison")
}

async fn value(store: &impl Store, key: &str) -> Option<(Vec<u8>, u64)> {
    let entry = store.get(key).await.expect("a key can be read");
    entry.map(|entry| (entry.value, entry.revision))
}

async fn revisions_count_commits(store: &impl Store) {
    assert_eq!(
        commit(
            store,
            vec![Change::put("r/a", "1"), Change::put("r/b", "1")]
        )
        .await,
        1
    );
    assert_eq!(commit(store, vec![Change::put("r/a", "2")]).await, 2);
    assert_eq!(value(store, "r/a").await, Some((b"2".to_vec(), 2)));
    assert_eq!(value(store, "r/b").await, Some((b"1".to_vec(), 1)));
    assert_eq!(
        commit(store, vec![Change::delete("r/b"), Change::delete("r/none")]).await,
        3
    );
    assert_eq!(value(store, "r/b").await, None);
    assert_eq!(store.revision(), 3);
}

async fn comparisons_hold_or_nothing_changes(store: &impl Store) {
    let before = store.revision();
    let wrong = [
        Compare::absent("r/a"),
        Compare::at("r/a", 1),
        Compare::at("r/none", 1),
    ];
    for compare in wrong {
        let key = compare.key.clone();
        let compare = vec![Compare::absent("c/new"), compare];
        let failed = store.commit(compare, vec![Change::put("c/new", "x")]).await;
        assert!(matches!(failed, Err(StoreError::Conflict(at)) if at == key));
    }
    assert_eq!(
        (store.revision(), value(store, "c/new").await),
        (before, None)
    );
    let right = vec![Compare::absent("c/new"), Compare::at("r/a", 2)];
    let done = store.commit(right, vec![Change::put("c/new", "x")]).await;
    assert_eq!(done.expect("the comparisons hold"), before + 1);
}

async fn ranges_are_sorted_and_paged(store: &impl Store) {
    for key in ["l/b", "l/a/2", "l", "l/a/1", "m/a", "l/c"] {
        commit(store, vec![Change::put(key, key)]).await;
    }
    let keys = async |prefix: &str, after: Option<&str>, limit: usize| {
        let found = store
            .range(prefix, after, limit)
            .await
            .expect("a range can be read");
        found.into_iter().map(|entry| entry.key).collect::<Vec<_>>()
    };
    assert_eq!(keys("l/", None, 10).await, ["l/a/1", "l/a/2", "l/b", "l/c"]);
    assert_eq!(keys("l/", None, 2).await, ["l/a/1", "l/a/2"]);
    assert_eq!(keys("l/", Some("l/a/2"), 2).await, ["l/b", "l/c"]);
    assert_eq!(keys("l/", Some("l/b"), MAX_RANGE).await, ["l/c"]);
    assert_eq!(keys("l/", Some("l/bb"), 10).await, ["l/c"]);
    assert_eq!(keys("l/", Some("a"), 1).await, ["l/a/1"]);
    assert!(keys("none/", None, 10).await.is_empty());
}

async fn bounds_are_kept(store: &impl Store) {
    let many = (0..=MAX_COMMIT_ITEMS)
        .map(|number| Change::put(format!("b/{number}"), ""))
        .collect();
    let over = [
        many,
        vec![Change::put("k".repeat(MAX_KEY_BYTES + 1), "")],
        vec![Change::put("b/large", vec![0; MAX_VALUE_BYTES + 1])],
    ];
    for changes in over {
        let failed = store.commit(vec![], changes).await;
        assert!(matches!(failed, Err(StoreError::TooLarge { .. })));
    }
    commit(
        store,
        vec![Change::put("b/largest", vec![7; MAX_VALUE_BYTES])],
    )
    .await;
    assert_eq!(
        value(store, "b/largest")
            .await
            .map(|(bytes, _)| bytes.len()),
        Some(MAX_VALUE_BYTES)
    );
}

async fn only_one_of_many_wins(store: &impl Store) {
    let tries = (0..8).map(|number: u8| {
        store.commit(vec![Compare::absent("w")], vec![Change::put("w", [number])])
    });
    let mut won = 0;
    let mut pending: Vec<_> = tries.map(Box::pin).collect();
    let all = std::future::poll_fn(|context| {
        pending.retain_mut(|attempt| match attempt.as_mut().poll(context) {
            std::task::Poll::Pending => true,
            std::task::Poll::Ready(done) => {
                won += usize::from(done.is_ok());
                false
            }
        });
        if pending.is_empty() {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    });
    all.await;
    assert_eq!(won, 1);
}

async fn watches_see_each_commit_once(store: &impl Store) {
    let start = store.revision();
    let mut watch = store.watch(start).expect("a watch can begin now");
    for number in 0..5_u8 {
        commit(
            store,
            vec![Change::put("watched", [number]), Change::delete("gone")],
        )
        .await;
    }
    let mut late = store
        .watch(start + 2)
        .expect("a watch can go back a little");
    for number in 0..5_u8 {
        let event = tokio::time::timeout(WATCH_TIMEOUT, watch.next())
            .await
            .expect("in time")
            .expect("an event");
        assert_eq!(event.revision, start + 1 + u64::from(number));
        assert_eq!(
            event.changes,
            [Change::put("watched", [number]), Change::delete("gone")]
        );
    }
    assert_eq!(late.next().await.expect("an event").revision, start + 3);
    let (next, done) = tokio::join!(
        watch.next(),
        commit(store, vec![Change::put("watched", "last")])
    );
    assert_eq!(next.expect("an event").revision, done);
}

async fn a_watch_that_is_too_slow_is_told(store: &impl Store) {
    let start = store.revision();
    let mut watch = store.watch(start).expect("a watch can begin now");
    for _ in 0..=HISTORY_REVISIONS {
        commit(store, vec![Change::put("often", "")]).await;
    }
    assert!(matches!(
        watch.next().await,
        Err(StoreError::Compacted { .. })
    ));
    assert!(matches!(
        store.watch(start),
        Err(StoreError::Compacted { .. })
    ));
    assert!(store.watch(store.revision()).is_ok());
}
