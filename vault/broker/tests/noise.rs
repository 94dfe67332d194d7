//! A taken-over supervisor, or a shortage of descriptors: malformed packets do not end the vault.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod fleet;
mod upstream;

use std::io::{IoSlice, Read as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use casemate_channel::control::sealed_memfd;
use casemate_wire::control::Message as _;
use casemate_wire::control::vault::ToVault;
use casemate_wire::frame::control_packet;
use fleet::{Fleet, KEY};
use rustix::fs::{MemfdFlags, Mode, OFlags};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use upstream::Upstream;

/// More than a flood, and few enough to be read at once.
const PACKETS: usize = 1000;

fn send(socket: &OwnedFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    assert!(ancillary.push(SendAncillaryMessage::ScmRights(fds)));
    let bytes = [IoSlice::new(bytes)];
    while let Err(errno) = sendmsg(socket, &bytes, &mut ancillary, SendFlags::NOSIGNAL) {
        assert_eq!(errno, rustix::io::Errno::AGAIN, "the vault has ended");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_packets_are_skipped_and_their_descriptors_are_closed() {
    let upstream = Upstream::start(KEY).await;
    let mut fleet = Fleet::start(&upstream).await;
    fleet.join().await;
    let honest = fleet.vault().have().await;

    let large = sealed_memfd("large", &vec![0; ToVault::MAX_BYTES + 1]).unwrap();
    let garbage = sealed_memfd("garbage", &[0xff; 1000]).unwrap();
    let open = rustix::fs::memfd_create("open", MemfdFlags::ALLOW_SEALING).unwrap();
    let path = format!(
        "/proc/self/fd/{}",
        std::os::fd::AsRawFd::as_raw_fd(&garbage)
    );
    let write_only = rustix::fs::open(path, OFlags::WRONLY, Mode::empty()).unwrap();
    let (gift, mut kept) = UnixStream::pair().unwrap();
    let gift = OwnedFd::from(gift);
    let (empty, noise) = (control_packet(&[]), control_packet(&[0xff; 100]));
    let socket = fleet.vault().socket.try_clone().unwrap();
    for _ in 0..PACKETS {
        send(&socket, b"garbage", &[gift.as_fd()]);
        send(&socket, &noise, &[gift.as_fd()]);
        send(&socket, &vec![0; 100_000], &[gift.as_fd()]);
        send(&socket, &noise, &[gift.as_fd(); 16]);
        send(&socket, &empty, &[]);
        for memfd in [&large, &garbage, &open, &write_only] {
            send(&socket, &empty, &[gift.as_fd(), memfd.as_fd()]);
        }
    }

    assert_eq!(
        fleet.vault().have().await,
        honest,
        "the vault keeps serving"
    );
    drop(gift);
    kept.set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    assert_eq!(kept.read(&mut [0]).unwrap(), 0, "the descriptor was closed");
}
