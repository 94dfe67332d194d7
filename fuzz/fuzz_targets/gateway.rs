//! A caller's bytes before HTTP: framing, host and target have one reading, however the bytes are
//! cut.
#![no_main]
#![allow(dead_code, reason = "the gateway needs more of its modules")]

use frames::Frames;
use host::Host;
use libfuzzer_sys::fuzz_target;
use strict::Scanner;
use target::Target;

#[path = "../../node/gateway/src/answer.rs"]
mod answer;
#[path = "../../node/gateway/src/cookies.rs"]
mod cookies;
#[path = "../../node/gateway/src/fields.rs"]
mod fields;
#[path = "../../node/gateway/src/frames.rs"]
mod frames;
#[path = "../../node/gateway/src/host.rs"]
mod host;
#[path = "../../node/gateway/src/route.rs"]
mod route;
#[path = "../../node/gateway/src/strict.rs"]
mod strict;
#[path = "../../node/gateway/src/target.rs"]
mod target;

/// How many bytes of a connection are let through, if all are; how many heads that are; and what
/// the parser gets if they are refused. `None`: a flood.
fn scanned(bytes: &[u8], piece: usize) -> Option<(Option<usize>, u32, Option<&'static [u8]>)> {
    let (mut scanner, mut frames) = (Scanner::default(), Frames::new(0));
    let mut taken = 0;
    for piece in bytes.chunks(piece) {
        let used = scanner.scan(piece, &mut frames).ok()?;
        taken += used;
        if used < piece.len() {
            break;
        }
    }
    let refusal = scanner.refusal(usize::MAX);
    assert!(
        refusal.is_some() || taken == bytes.len(),
        "bytes that are neither taken nor refused"
    );
    // Of a line that is too long, as much is taken as came before the piece that made it so.
    let taken = refusal.is_none().then_some(taken);
    Some((taken, scanner.heads(), refusal))
}

fn host_and_target(host: &str, rest: &str) {
    let Ok(host) = Host::parse(host) else { return };
    let mut written = String::new();
    host.write(&mut written);
    assert_eq!(
        Host::parse(&written).as_ref(),
        Ok(&host),
        "another reading of {written:?}"
    );
    assert!(
        !written.contains(['@', '/', '\\', '%', '#', '?', ' ']),
        "{written:?}"
    );
    for is_tls in [false, true] {
        let Ok(target) = Target::new(is_tls, &host, rest) else {
            continue;
        };
        let path = target.path().to_owned();
        let text = target.into_text();
        let url = url::Url::parse(&text).expect("a URL of ours");
        assert_eq!((url.as_str(), url.path()), (text.as_str(), path.as_str()));
        assert_eq!(url.username(), "", "{text}");
        assert!(
            !path
                .split('/')
                .any(|segment| segment == ".." || segment == "."),
            "{text}"
        );
    }
}

fuzz_target!(|input: (&[u8], u8, &str, &str)| {
    let (bytes, piece, host, rest) = input;
    let whole = scanned(bytes, bytes.len().max(1));
    assert_eq!(whole, scanned(bytes, usize::from(piece).max(1)));
    assert_eq!(whole, scanned(bytes, 1));
    host_and_target(host, rest);
    let fields = [host.as_bytes(), rest.as_bytes()];
    let two = Host::of_request(None, fields.into_iter(), true);
    assert!(two.is_err(), "two Host fields");
});
