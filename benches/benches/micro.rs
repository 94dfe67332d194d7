//! Times of single operations: `make bench-micro`.
#![forbid(unsafe_code)]
#![allow(missing_docs, reason = "criterion's macros make public functions")]

mod subjects;

use std::hint::black_box;

use bytes::Bytes;
use casemate_channel::{acceptor, opener, pair};
use casemate_vault_store::{Kind, Room, Store, Write};
use casemate_wire::{Fields, RequestHead, ResponseHead};
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use subjects::{Sealed, Signed, fill};
use zeroize::Zeroizing;

/// Header fields of a typical request.
const FIELDS: usize = 8;
/// Size of a stored record: a sealed secret.
const RECORD_BYTES: usize = 2048;

fn head() -> RequestHead {
    let fields = (0..FIELDS).fold(Fields::default(), |fields, number| {
        fields.with(&format!("x-field-{number}"), "a value of usual length")
    });
    RequestHead {
        method: "GET".into(),
        target: "https://web.apps.example.test/path?name=value".into(),
        fields,
    }
}

/// Both ends run on one thread, so that the figure is the cost of the code, without wake-ups by the
/// system.
fn channel(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let guard = runtime.enter();
    let (ours, theirs) = pair().expect("a socket pair");
    let opener = opener(ours).expect("a channel");
    let mut acceptor = acceptor(theirs).expect("a channel");
    drop(guard);
    runtime.spawn(async move {
        let head = ResponseHead {
            status: 200,
            fields: Fields::default().with("content-type", "text/plain"),
        };
        while let Some(incoming) = acceptor.accept().await {
            let mut body = incoming.reply.send(&head, false);
            if body.send(Bytes::from_static(b"hello")).await.is_ok() {
                body.finish();
            }
        }
    });
    criterion.bench_function("channel_round_trip", |bencher| {
        bencher.iter(|| {
            runtime.block_on(async {
                let exchange = opener.open(head(), true).expect("room");
                let (_, mut body) = exchange.response.head().await.expect("an answer");
                while let Some(piece) = body.next().await {
                    black_box(piece.expect("bytes"));
                }
            });
        });
    });
}

fn trust(criterion: &mut Criterion) {
    let (signed, sealed, release) = (Signed::new(), Sealed::new(), subjects::release());
    criterion.bench_function("verify_envelope", |bencher| {
        bencher.iter(|| assert!(signed.verify()));
    });
    criterion.bench_function("seal_secret", |bencher| bencher.iter(|| sealed.seal()));
    criterion.bench_function("open_secret", |bencher| bencher.iter(|| sealed.open()));
    criterion.bench_function("decide_credential", |bencher| {
        bencher.iter(|| black_box(subjects::decide_credential(&release)));
    });
    criterion.bench_function("decide_rule", |bencher| {
        bencher.iter(|| black_box(subjects::decide_rule(&release)));
    });
    let table = subjects::table();
    criterion.bench_function("find_route", |bencher| {
        bencher.iter(|| black_box(subjects::find(black_box(&table))));
    });
}

/// Scrubs a body of 1 MiB.
fn scrub(criterion: &mut Criterion) {
    for (name, body) in subjects::bodies() {
        criterion.bench_function(name, |bencher| {
            bencher.iter(|| assert_eq!(subjects::scrub(black_box(&body)), body.len()));
        });
    }
}

/// `put` returns once the record is on the disk.
fn store(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a folder");
    let key = Zeroizing::new([6; 32]);
    let (store, _) = Store::open(folder.path(), &key).expect("a store");
    let mut number = 0;
    criterion.bench_function("store_put", |bencher| {
        bencher.iter_batched(
            || {
                number += 1;
                [Write::Put(
                    Kind::Object,
                    format!("{number:064x}"),
                    vec![b'x'; RECORD_BYTES],
                )]
            },
            |writes| {
                let done = store.commit(&writes, None, Room::Free, &mut fill);
                done.expect("room");
            },
            BatchSize::SmallInput,
        );
    });
    let name = format!("{:064x}", 1);
    criterion.bench_function("store_get", |bencher| {
        bencher.iter(|| store.get(Kind::Object, &name).expect("it opens"));
    });
}

criterion_group!(micro, channel, trust, scrub, store);
criterion_main!(micro);
