//! Stands in for a program that `casemate-launch` starts.

#![allow(unsafe_code, reason = "a hostile program")]

use std::fmt::Write;
use std::fs;
use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use casemate_sandbox::{LayerReport, Profile};
use rustix::net::{
    RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recv, send, sendmsg,
};

use crate::enter;

/// Plays the supervisor: hands its command socket to the test over the socket whose path is all
/// that the configuration holds, then exits with the code that the test sends, with 0 on SIGTERM,
/// or with 64 when SIGHUP came first.
pub(crate) fn supervisor(config: &str, state: &str) {
    let path = fs::read_to_string(config).expect("the configuration");
    let mut test = UnixStream::connect(path.trim()).expect("the test");
    fs::write(Path::new(state).join("mine"), "").expect("a file in its folder");
    let stdin = std::io::stdin();
    let descriptors = [stdin.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    assert!(ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)));
    let facts = facts();
    sendmsg(
        &test,
        &[IoSlice::new(facts.as_bytes())],
        &mut ancillary,
        SendFlags::empty(),
    )
    .expect("the test listens");
    // From here on the test's end is the only copy, so that launch notices when the test closes it.
    let null = fs::File::open("/dev/null").expect("/dev/null");
    rustix::stdio::dup2_stdin(&null).expect("descriptor 0");

    std::thread::spawn(move || {
        let mut code = [0];
        test.read_exact(&mut code).expect("a code");
        std::process::exit(code[0].into());
    });
    let mut code = 0;
    // SAFETY: an all-zero set is empty and valid; it and `signal` outlive the calls. The signals
    // are blocked in this thread, and the test orders launch to send them only afterwards.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigaddset(&raw mut set, libc::SIGTERM);
        libc::sigaddset(&raw mut set, libc::SIGHUP);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        let mut signal = 0;
        while signal != libc::SIGTERM {
            libc::sigwait(&raw const set, &raw mut signal);
            if signal == libc::SIGHUP {
                code = 64;
            }
        }
    }
    std::process::exit(code);
}

/// Plays any other program: sends facts about itself in one packet, then carries out the packets
/// that it receives.
pub(crate) fn child(profile: Profile) {
    say(&facts());
    loop {
        let mut order = [0; 64];
        let (length, _) = recv(std::io::stdin(), &mut order, RecvFlags::empty()).expect("an order");
        let order = std::str::from_utf8(&order[..length]).expect("text");
        match order.split(' ').collect::<Vec<_>>()[..] {
            [""] => return,
            ["enter"] => {
                let lines = enter(profile).into_iter().map(|report| {
                    format!("{} {} {}\n", report.layer, report.in_force, report.detail)
                });
                say(&lines.collect::<String>());
            }
            ["half"] => {
                let layers = casemate_sandbox::before_engine().expect("the first half");
                say(&after(&layers));
            }
            ["unblock"] => {
                // SAFETY: `close` takes a number and touches no memory.
                let changed = unsafe { libc::fcntl(2, libc::F_SETFL, libc::O_NONBLOCK) };
                say(&format!("changed {changed}"));
            }
            ["exit", code] => std::process::exit(code.parse().expect("a code")),
            ["open"] => drop(fs::File::open("/etc/passwd")),
            ["eat", mib] => {
                let eaten = vec![1_u8; mib.parse::<usize>().expect("a number") << 20];
                say(&format!("ate {}", std::hint::black_box(&eaten).len()));
            }
            ["hold", mib] => {
                let held = vec![1_u8; mib.parse::<usize>().expect("a number") << 20];
                std::mem::forget(std::hint::black_box(held));
            }
            ["fork"] => {
                let mut made = 0;
                while made < 1000 {
                    // SAFETY: this process has one thread, so the child is a whole copy; the parent
                    // waits for its end.
                    match unsafe { libc::fork() } {
                        -1 => break,
                        0 => loop {
                            std::thread::park();
                        },
                        _ => made += 1,
                    }
                }
                say(&format!("forked {made}"));
            }
            ["spin"] => loop {
                std::hint::spin_loop();
            },
            _ => panic!("unknown order {order}"),
        }
    }
}

fn say(text: &str) {
    send(std::io::stdin(), text.as_bytes(), SendFlags::NOSIGNAL).expect("the test listens");
}

/// `name value` lines about this process.
fn facts() -> String {
    let mut facts = String::new();
    let status = fs::read_to_string("/proc/self/status").expect("/proc/self/status");
    for line in status.lines() {
        let (name, value) = line.split_once(':').expect("name: value");
        if ["Uid", "Gid", "Groups", "NoNewPrivs", "SigBlk", "NSpid"].contains(&name)
            || name.starts_with("Cap")
        {
            let _ = writeln!(
                facts,
                "{name} {}",
                value.split_whitespace().collect::<Vec<_>>().join(" ")
            );
        }
    }
    for name in ["user", "pid", "mnt", "net", "ipc", "uts"] {
        // A kernel without this kind of namespace has no such link.
        let link = fs::read_link(format!("/proc/self/ns/{name}")).unwrap_or_default();
        let _ = writeln!(facts, "ns/{name} {}", link.display());
    }
    let mut names: Vec<String> = std::env::vars().map(|(name, _)| name).collect();
    names.sort();
    let _ = writeln!(facts, "environment {}", names.join(" "));
    let arguments: Vec<String> = std::env::args().collect();
    let _ = writeln!(facts, "arguments {}", arguments.join(" "));
    let open = fs::read_dir("/proc/self/fd")
        .expect("/proc/self/fd")
        .flatten();
    let mut open: Vec<String> = open
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    open.sort();
    // One of the descriptors is the folder that is being read.
    let _ = writeln!(facts, "descriptors {}", open.join(" "));
    let _ = writeln!(
        facts,
        "stdout {}",
        fs::read_link("/proc/self/fd/1")
            .expect("descriptor 1")
            .display()
    );
    let devices = fs::read_to_string("/proc/self/net/dev").expect("/proc/self/net/dev");
    let devices: Vec<_> = devices
        .lines()
        .filter_map(|line| Some(line.split_once(':')?.0.trim()))
        .collect();
    let _ = writeln!(facts, "devices {}", devices.join(" "));
    let loopback = TcpStream::connect("127.0.0.1:9")
        .expect_err("no server there")
        .kind();
    let _ = writeln!(facts, "loopback {loopback:?}");
    // SAFETY: both calls take a number and touch no memory.
    let (session, own) = unsafe { (libc::getsid(0), libc::getpid()) };
    let _ = writeln!(
        facts,
        "session {}",
        if session == own { "own" } else { "other" }
    );
    facts
}

/// What the mount allows on both halves. Landlock forbids opening files, not `stat`, so these
/// answers come from the mount alone.
fn after(layers: &[LayerReport]) -> String {
    let mut facts = String::new();
    for layer in layers.iter().filter(|layer| layer.layer == "landlock") {
        let _ = writeln!(facts, "landlock {} {}", layer.in_force, layer.detail);
    }
    for path in ["/etc", "/proc", "/usr", "/tmp", "/dev", "/.."] {
        let there = match fs::symlink_metadata(path) {
            Ok(_) => "there".to_owned(),
            Err(error) => format!("{:?}", error.kind()),
        };
        let _ = writeln!(facts, "{path} {there}");
    }
    let root = rustix::fs::statvfs("/").expect("the root");
    let _ = writeln!(facts, "inodes {}", root.f_favail);
    let _ = writeln!(
        facts,
        "read-only {}",
        root.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY)
    );
    let _ = writeln!(
        facts,
        "environment {}",
        std::env::vars()
            .map(|(name, _)| name)
            .collect::<Vec<_>>()
            .join(" ")
    );
    let held = rustix::thread::capabilities(None).expect("capabilities");
    let _ = writeln!(
        facts,
        "capabilities {:?}",
        held.permitted.bits() | held.effective.bits() | held.inheritable.bits()
    );
    let bounding = rustix::thread::CapabilitySet::all().iter();
    let bounding = bounding
        .filter(|one| rustix::thread::capability_is_in_bounding_set(*one).unwrap_or(false))
        .count();
    let _ = writeln!(facts, "bounding {bounding}");
    // SAFETY: `setuid` takes a number and touches no memory; if it succeeds the test fails.
    let _ = writeln!(facts, "unshare {}", unsafe {
        libc::unshare(libc::CLONE_NEWNET)
    });
    let open = fs::read_dir("/").map_err(|error| error.kind());
    let _ = writeln!(facts, "list {:?}", open.map(|_| ()));
    facts
}
