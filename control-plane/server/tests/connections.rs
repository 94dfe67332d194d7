//! Silent connections do not keep others out.
// A panic is how a test fails.
#![allow(clippy::unwrap_used)]

mod support;

use std::net::Ipv4Addr;
use std::time::Duration;

use casemate_api::token::TokenList;
use support::Control;
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpSocket, TcpStream};

/// Less than any of the listener's own time limits, so that none of them can have freed a slot.
const AT_ONCE: Duration = Duration::from_secs(8);
const ADDRESSES: u8 = 4;
const FROM_EACH: usize = 128;

async fn silent(control: &Control, from: u8) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    let from = Ipv4Addr::new(127, 0, 0, from);
    socket.bind((from, 0).into()).unwrap();
    socket.connect(control.api.parse().unwrap()).await.unwrap()
}

#[tokio::test]
async fn silent_connections_of_four_addresses_do_not_keep_an_operator_out() {
    let control = Control::new().await;
    let mut held = Vec::new();
    for address in 2..2 + ADDRESSES {
        for _ in 0..FROM_EACH {
            held.push(silent(&control, address).await);
        }
    }
    // From an address without connections, and from one with as many as it may have.
    let asked = tokio::time::timeout(AT_ONCE, control.operator().get("/v1/tokens")).await;
    let tokens: TokenList = asked.expect("the operator is served").ok().json();
    assert_eq!(tokens.tokens.len(), 1);
    let oldest = &mut held[0];
    let ended = tokio::time::timeout(AT_ONCE, oldest.read(&mut [0])).await;
    assert!(ended.is_ok(), "the oldest silent connection was evicted");
}
