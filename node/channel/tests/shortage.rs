//! A process without free descriptors: a test file of its own, because the limit applies to the
//! whole process.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::os::fd::AsFd as _;

use casemate_channel::{Control, ControlError};
use casemate_wire::control::WorkerId;
use casemate_wire::control::vault::{FromVault, ToVault};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

fn limit(descriptors: Option<u64>) {
    let limit = Rlimit {
        current: descriptors,
        ..getrlimit(Resource::Nofile)
    };
    setrlimit(Resource::Nofile, limit).unwrap();
}

#[tokio::test]
async fn a_message_is_lost_to_a_shortage_of_descriptors_and_the_next_is_not() {
    let (ours, theirs) = casemate_channel::control::pair().unwrap();
    let supervisor = Control::<ToVault, FromVault>::new(ours).unwrap();
    let vault = Control::<FromVault, ToVault>::new(theirs).unwrap();
    let gift = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
    supervisor
        .send(&ToVault::Signer, &[gift.as_fd(), gift.as_fd()])
        .await
        .unwrap();

    let before = getrlimit(Resource::Nofile).current;
    limit(Some(1));
    let lost = vault.recv().await.unwrap_err();
    let large = FromVault::Description {
        json: "x".repeat(100_000),
    };
    let unsent = vault.send(&large, &[]).await.unwrap_err();
    limit(before);

    assert!(matches!(lost, ControlError::Truncated) && lost.is_of_one_message());
    assert!(matches!(unsent, ControlError::NoMemfd(_)) && unsent.is_of_one_message());
    let worker = WorkerId(7);
    supervisor
        .send(&ToVault::Gone { worker }, &[])
        .await
        .unwrap();
    let (next, _) = vault.recv().await.unwrap().unwrap();
    assert_eq!(next, ToVault::Gone { worker });
    vault.send(&large, &[]).await.unwrap();
    assert_eq!(supervisor.recv().await.unwrap().unwrap().0, large);
}
