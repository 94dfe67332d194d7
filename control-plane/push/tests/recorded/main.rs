//! Recorded bytes of the protocol: what is in use must be read and written as it was, or carry a
//! new version number.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod conversation;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use casemate_push::bundle::Header;
use casemate_push::*;
use casemate_trust::id::{Digest, FleetId, TenantId};
use casemate_trust::key::PublicKey;
use casemate_trust::name::Name;

const KEY: PublicKey = PublicKey::from_bytes([9; 32]);
const FLEET: FleetId = FleetId([8; 32]);
const TENANT: TenantId = TenantId([7; 32]);
const STORE: StoreId = StoreId([6; 16]);
/// The message of a test that finds other bytes than the recorded ones.
const WHAT_TO_DO: &str = "The format of the push protocol has changed, and nodes and control \
     planes that are in use speak the recorded one. Undo the change, or give it a version: add the \
     number to casemate_push::VERSIONS, go on to speak the version before, and record the new one \
     with CASEMATE_GOLDEN=write";

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/push")
}

/// The lines of a recording, which is written if it is not there and that is asked for.
fn recorded(name: &str, now: &[String]) -> Vec<String> {
    let path = folder().join(name);
    let is_writing = std::env::var("CASEMATE_GOLDEN").is_ok_and(|value| value == "write");
    if is_writing && !path.exists() {
        std::fs::create_dir_all(folder()).unwrap();
        std::fs::write(&path, now.join("\n") + "\n").unwrap();
    }
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| {
        panic!(
            "{}: {error}: version without a recording\n{WHAT_TO_DO}",
            path.display()
        )
    });
    text.lines().map(str::to_owned).collect()
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

fn unhex(text: &str) -> Vec<u8> {
    let pairs = text.as_bytes().chunks(2);
    let byte = |pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    pairs.map(byte).collect()
}

/// A recorded line: the sender, the kind of the message, and its bytes.
fn line(who: &str, what: &str, bytes: &[u8]) -> String {
    format!("{who} {what} {}", hex(bytes))
}

/// A message without a name does not compile here; every name is in [`TO_CONTROL`].
fn of_node(message: &ToControl) -> &'static str {
    match message {
        ToControl::Hello(_) => "hello",
        ToControl::Join { .. } => "join",
        ToControl::Ack { .. } => "ack",
        ToControl::Nack { .. } => "nack",
        ToControl::Stored { .. } => "stored",
        ToControl::NotStored(_) => "not-stored",
        ToControl::FetchBundle { .. } => "fetch-bundle",
        ToControl::FetchImage { .. } => "fetch-image",
        ToControl::FetchObjects { .. } => "fetch-objects",
        ToControl::Lease { .. } => "lease",
        ToControl::Logs { .. } => "logs",
        ToControl::Status { .. } => "status",
    }
}

const TO_CONTROL: [&str; 12] = [
    "hello",
    "join",
    "ack",
    "nack",
    "stored",
    "not-stored",
    "fetch-bundle",
    "fetch-image",
    "fetch-objects",
    "lease",
    "logs",
    "status",
];

/// The name of the control plane's message in [`TO_NODE`].
fn of_control(message: &ToNode) -> &'static str {
    match message {
        ToNode::Welcome { .. } => "welcome",
        ToNode::JoinPending => "join-pending",
        ToNode::JoinRefused { .. } => "join-refused",
        ToNode::Admitted => "admitted",
        ToNode::Statement { .. } => "statement",
        ToNode::Object { .. } => "object",
        ToNode::Synced { .. } => "synced",
        ToNode::Unavailable { .. } => "unavailable",
        ToNode::Lease { .. } => "lease",
        ToNode::Revoked { .. } => "revoked",
        ToNode::Refused { .. } => "refused",
    }
}

const TO_NODE: [&str; 11] = [
    "welcome",
    "join-pending",
    "join-refused",
    "admitted",
    "statement",
    "object",
    "synced",
    "unavailable",
    "lease",
    "revoked",
    "refused",
];

fn ids() -> Vec<StatementId> {
    let tenant = TENANT;
    vec![
        StatementId::Root { version: 1 },
        StatementId::OnlineKey { version: 2 },
        StatementId::Pool {
            name: name("main"),
            epoch: 3,
        },
        StatementId::Tenant { tenant, version: 4 },
        StatementId::Manifest {
            tenant,
            version: 500,
        },
        StatementId::Grant {
            pool: name("main"),
            epoch: 3,
        },
        StatementId::Image {
            version: 0x1_0002_0003,
            statement: Digest([5; 32]),
        },
        StatementId::Revocations { version: 6 },
        StatementId::Freshness {
            tenant,
            version: 500,
            issued: 1_800_000_000,
        },
    ]
}

fn full_hello() -> Hello {
    let has = TenantHas {
        version: 4,
        manifest: Some((500, Digest([4; 32]))),
        freshness: Some((500, 1_800_000_000)),
        is_stored: true,
    };
    Hello {
        protocol: 3,
        node: name("edge-1"),
        node_key: KEY,
        fleet: FLEET,
        software: "0.1.0".into(),
        cursor: Some(Cursor {
            store: STORE,
            revision: 300,
        }),
        has: Has {
            root: 1,
            online: 2,
            epochs: [1, 2, 3].into(),
            grants: [2, 3].into(),
            tenants: [(TENANT, has), (TenantId([1; 32]), TenantHas::default())].into(),
            more_tenants: true,
            image: Some((0x1_0002_0003, Digest([5; 32]))),
            revocations: 6,
        },
    }
}

/// Log entries of every level, and one with a failure.
fn log_entries() -> Vec<LogEntry> {
    let entry = |level| LogEntry {
        tenant: TENANT,
        function: name("web"),
        request: Some("r1".into()),
        level,
        message: "gr\u{fc}\u{df}e".into(),
        time_ms: 1_800_000_000_123,
        failure: None,
    };
    let failed = LogEntry {
        request: None,
        failure: Some("exceeded_cpu".into()),
        ..entry(LogLevel::Error)
    };
    let levels = [LogLevel::Debug, LogLevel::Info, LogLevel::Warn];
    levels.map(entry).into_iter().chain([failed]).collect()
}

/// Every message that a node sends, with every kind of what is in it.
fn messages_of_node() -> Vec<ToControl> {
    let (tenant, digest) = (TENANT, Digest([3; 32]));
    let text = |text: &str| text.to_owned();
    let mut messages = vec![
        ToControl::Join {
            request: vec![1, 2, 3],
        },
        ToControl::Hello(Box::new(full_hello())),
        ToControl::Hello(Box::new(Hello {
            cursor: None,
            has: Has::default(),
            ..full_hello()
        })),
        ToControl::Nack {
            revision: 300,
            id: StatementId::Root { version: 1 },
            code: text("root_version_lower"),
            message: text("no"),
        },
        ToControl::Stored {
            tenant,
            version: 500,
        },
        ToControl::NotStored(NotStored {
            tenant,
            version: 500,
            code: text("bundle_quota"),
            message: text("no room"),
        }),
        ToControl::FetchBundle {
            digest,
            offset: 70_000,
        },
        ToControl::FetchImage {
            digest,
            offset: 70_000,
            bytes: 1_048_576,
        },
        ToControl::FetchObjects {
            tenant,
            digests: vec![digest, Digest([4; 32])],
        },
        ToControl::Lease { nonce: [2; 32] },
        ToControl::Logs {
            entries: log_entries(),
            lost: 1,
        },
        ToControl::Status {
            json: text(r#"{"state":{}}"#),
        },
    ];
    let revisions = 300..;
    messages.extend(
        revisions
            .zip(ids())
            .map(|(revision, id)| ToControl::Ack { revision, id }),
    );
    messages
}

/// Messages of the control plane, at least one of each kind.
fn messages_of_control() -> Vec<ToNode> {
    let now = Cursor {
        store: STORE,
        revision: 301,
    };
    let (tenant, digest) = (TENANT, Digest([3; 32]));
    let (code, message) = ("token_used".to_owned(), "another node".to_owned());
    let object = |kind| ToNode::Object {
        tenant,
        digest,
        kind,
        bytes: vec![7; 3],
    };
    let mut messages = vec![
        ToNode::JoinPending,
        ToNode::JoinRefused {
            code: code.clone(),
            message: message.clone(),
        },
        ToNode::Admitted,
        ToNode::Welcome { now },
        object(ObjectKind::Release),
        object(ObjectKind::Secret),
        ToNode::Synced { now },
        ToNode::Unavailable { digest },
        ToNode::Lease {
            answer: vec![1; 300],
        },
        ToNode::Revoked { list: vec![1, 2] },
        ToNode::Refused { code, message },
    ];
    let revisions = 300..;
    messages.extend(
        revisions
            .zip(ids())
            .map(|(revision, id)| ToNode::Statement {
                revision,
                id,
                bytes: vec![9, 8, 7],
            }),
    );
    messages
}

/// Every message, and the header of a bundle's stream, as they are written in a version.
fn messages(version: u16) -> Vec<String> {
    assert_eq!(
        version, 3,
        "the messages of a new version are listed beside those of version 3"
    );
    let node = messages_of_node();
    let node = node
        .iter()
        .map(|message| line("node", of_node(message), &encode(message)));
    let control = messages_of_control();
    let control = control
        .iter()
        .map(|message| line("control", of_control(message), &encode(message)));
    let header = Header {
        digest: Digest([3; 32]),
        offset: 70_000,
        total: 80_000,
    };
    let header = line("control", "bundle-header", &header.to_bytes());
    node.chain(control).chain([header]).collect()
}

#[test]
fn messages_are_written_as_they_were() {
    for version in VERSIONS.oldest..=VERSIONS.newest {
        let now = messages(version);
        let recorded = recorded(&format!("messages-{version}.txt"), &now);
        for (now, recorded) in now.iter().zip(&recorded) {
            assert_eq!(now, recorded, "\n{WHAT_TO_DO}");
        }
        assert_eq!(now.len(), recorded.len(), "\n{WHAT_TO_DO}");
        let has = |who: &str, what: &str| {
            let start = format!("{who} {what} ");
            recorded.iter().any(|line| line.starts_with(&start))
        };
        assert!(TO_CONTROL.iter().all(|what| has("node", what)));
        assert!(TO_NODE.iter().all(|what| has("control", what)));
    }
}
