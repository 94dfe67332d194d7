//! A worker's messages on its channel.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::time::Duration;

use bytes::Bytes;
use casemate_channel::{Exchange, Opener, StreamError, opener};
use casemate_trust::release::{EgressRule, Release, Scheme};
use casemate_wire::control::vault::ToVault;
use casemate_wire::control::{FunctionKey, WorkerId};
use casemate_wire::{Fields, RequestHead};

use crate::fleet::Fleet;
use crate::upstream::Upstream;

pub(crate) const SOON: Duration = Duration::from_secs(30);

/// The answer that a worker gets.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) fields: Fields,
    pub(crate) body: Vec<u8>,
    /// The answer broke off.
    pub(crate) broken: bool,
}

impl Answer {
    pub(crate) fn error(&self) -> &str {
        self.fields.text(":error").unwrap_or("none")
    }
}

pub(crate) async fn call(
    channel: &Opener,
    binding: Option<&str>,
    method: &str,
    url: &str,
    body: &'static str,
    fields: &[(&str, &str)],
) -> Answer {
    let mut all = Fields::default().with(":request", "r1");
    if let Some(binding) = binding {
        all.push(":binding", binding);
    }
    for (name, value) in fields {
        all.push(name, value);
    }
    let mut exchange = open(channel, method, url, all, body.is_empty());
    if !body.is_empty() {
        match exchange
            .body
            .send(Bytes::from_static(body.as_bytes()))
            .await
        {
            // A call may be answered before its body is read.
            Ok(()) | Err(StreamError::Reset(_)) => {}
            Err(error) => panic!("{error}"),
        }
    }
    exchange.body.finish();
    let (head, mut received) = tokio::time::timeout(SOON, exchange.response.head())
        .await
        .unwrap()
        .unwrap();
    let mut body = Vec::new();
    let mut broken = false;
    while let Some(piece) = tokio::time::timeout(SOON, received.next()).await.unwrap() {
        match piece {
            Ok(piece) => body.extend_from_slice(&piece),
            Err(_) => broken = true,
        }
    }
    Answer {
        status: head.status,
        fields: head.fields,
        body,
        broken,
    }
}

/// Begins a call.
pub(crate) fn open(
    channel: &Opener,
    method: &str,
    url: &str,
    fields: Fields,
    end: bool,
) -> Exchange {
    let head = RequestHead {
        method: method.into(),
        target: url.into(),
        fields,
    };
    channel.open(head, end).unwrap()
}

pub(crate) async fn channel(fleet: &mut Fleet, release: [u8; 32]) -> Opener {
    let (ours, theirs) = casemate_channel::pair().unwrap();
    let key = FunctionKey {
        tenant: fleet.tenant.id.0,
        function: "web".into(),
    };
    fleet
        .vault()
        .send(
            ToVault::Channel {
                worker: WorkerId(1),
                key,
                release,
            },
            Some(theirs),
        )
        .await;
    opener(ours).unwrap()
}

/// A member with a lease, a secret and a function that may call the upstream.
pub(crate) async fn serving(upstream: &Upstream) -> (Fleet, [u8; 32]) {
    serving_with(upstream, |_| ()).await
}

/// The same, prepared before it joins.
pub(crate) async fn serving_with(
    upstream: &Upstream,
    prepare: impl FnOnce(&mut Fleet),
) -> (Fleet, [u8; 32]) {
    let mut fleet = Fleet::start(upstream).await;
    prepare(&mut fleet);
    fleet.join().await;
    let release = fleet.deploy(1).await;
    (fleet, release)
}

/// Allows plain `fetch` to the host of the slot too.
pub(crate) fn with_plain_egress(release: &mut Release) {
    let slot = &release.credentials[0];
    release.egress.push(EgressRule {
        scheme: Scheme::Https,
        host: slot.host.clone(),
        port: slot.port,
        methods: vec![],
        paths: vec![],
        ca: slot.ca.clone(),
    });
}
