//! Instruction counts of the pure operations, which repeat exactly: `make bench-micro`.
#![forbid(unsafe_code)]
#![allow(missing_docs, reason = "gungraun's macros make public items")]

mod subjects;

use std::hint::black_box;

use casemate_gateway::route::Table;
use casemate_trust::release::Release;
use gungraun::{library_benchmark, library_benchmark_group, main};
use subjects::{Sealed, Signed};

#[library_benchmark]
#[bench::of_2_kib(Signed::new())]
fn verify_envelope(signed: Signed) -> Signed {
    assert!(signed.verify());
    signed
}

#[library_benchmark]
#[bench::of_44_bytes(Sealed::new())]
fn open_secret(sealed: Sealed) -> Sealed {
    black_box(sealed.open());
    sealed
}

#[library_benchmark]
#[bench::of_44_bytes(Sealed::new())]
fn seal_secret(sealed: Sealed) -> Sealed {
    black_box(sealed.seal());
    sealed
}

#[library_benchmark]
#[bench::one(subjects::release())]
fn decide_credential(release: Release) -> Release {
    black_box(subjects::decide_credential(&release));
    release
}

#[library_benchmark]
#[bench::last_of_16(subjects::release())]
fn decide_rule(release: Release) -> Release {
    black_box(subjects::decide_rule(&release));
    release
}

#[library_benchmark]
#[bench::of_100000(subjects::table())]
fn find_route(table: Table<()>) -> Table<()> {
    black_box(subjects::find(&table));
    table
}

#[library_benchmark]
#[bench::of_1_mib(subjects::bodies()[0].1.clone())]
fn scrub_json(body: Vec<u8>) -> Vec<u8> {
    black_box(subjects::scrub(&body));
    body
}

#[library_benchmark]
#[bench::of_1_mib(subjects::bodies()[1].1.clone())]
fn scrub_html(body: Vec<u8>) -> Vec<u8> {
    black_box(subjects::scrub(&body));
    body
}

library_benchmark_group!(
    name = pure;
    benchmarks = verify_envelope, open_secret, seal_secret, decide_credential, decide_rule, find_route, scrub_json,
        scrub_html
);

main!(library_benchmark_groups = pure);
