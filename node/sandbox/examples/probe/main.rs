//! A hostile program for the tests: it stands in for any program of a node, and reports what it can
//! do.
//!
//! Under the name of a program it is started by `casemate-launch`. Otherwise its arguments name
//! what to try.

#![allow(clippy::print_stdout)] // The tests read it.

mod calls;
mod placed;

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::process::ExitCode;

use casemate_sandbox::{Access, Profile, before_engine, close, close_with, raise_descriptors};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        // The words that follow count the descriptors to adopt.
        ["casemate-node", "--config", config, "--state", state, ..] => {
            placed::supervisor(config, state);
        }
        ["casemate-vault", "--config", _, "--state", _] => placed::child(Profile::Vault),
        ["casemate-gateway"] => placed::child(Profile::Gateway),
        ["casemate-worker"] => placed::child(Profile::Worker),
        [_, "every-call", name] => calls::every_number(profile(name)),
        [_, "call", name, ref numbers @ ..] => calls::one(profile(name), numbers),
        [_, "other-entry", name] => calls::other_entry(profile(name)),
        [_, "serve", name] => serve(profile(name)),
        [_, "thread", name] => thread(profile(name)),
        [_, "files", allowed, other] => files(Path::new(allowed), Path::new(other)),
        [_, "descriptors", name] => descriptors(profile(name)),
        [_, "report", name] => report(profile(name)),
        [_, "threads-before"] => threads_before(),
        _ => panic!("unknown arguments: {words:?}"),
    }
    ExitCode::SUCCESS
}

fn profile(name: &str) -> Profile {
    match name {
        "supervisor" => Profile::Supervisor,
        "gateway" => Profile::Gateway,
        "vault" => Profile::Vault,
        "worker" => Profile::Worker,
        other => panic!("no profile {other}"),
    }
}

/// Closes its sandbox like the program of this profile.
fn enter(profile: Profile) -> Vec<casemate_sandbox::LayerReport> {
    let mut reports = Vec::new();
    if profile == Profile::Worker {
        reports = before_engine().expect("the first half");
    }
    reports.extend(close(profile).expect("closing in"));
    reports
}

/// Acts like a server in its sandbox: starts threads, and accepts callers on a listener that was
/// bound before.
fn serve(profile: Profile) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let client = TcpStream::connect(address).expect("a connection before closing in");
    enter(profile);
    let server = std::thread::Builder::new()
        .name("server".to_owned())
        .spawn(move || {
            let (stream, _) = listener.accept().expect("a caller");
            stream.set_nodelay(true).expect("an option");
            stream.peer_addr().expect("an address")
        });
    let peer = server.expect("a thread").join().expect("the thread's end");
    assert_eq!(peer, client.local_addr().expect("an address"));
    println!("served");
}

fn thread(profile: Profile) {
    enter(profile);
    let thread = std::thread::Builder::new()
        .name("named".to_owned())
        .spawn(|| 7);
    println!(
        "{}",
        thread.expect("a thread").join().expect("the thread's end")
    );
}

/// Prints how many descriptors it may open by its limit, and how many it can open, inside its
/// sandbox.
fn descriptors(profile: Profile) {
    let held = getrlimit(Resource::Nofile);
    let low = Rlimit {
        current: Some(64),
        ..held
    };
    setrlimit(Resource::Nofile, low).expect("a lower limit");
    let told = raise_descriptors().expect("a higher limit");
    enter(profile);
    let mut open = Vec::new();
    while let Ok(descriptor) = rustix::stdio::stdin().try_clone_to_owned() {
        open.push(descriptor);
    }
    let errno = std::io::Error::last_os_error();
    // The lowest free number is always used: below the last one all are taken.
    let can = open.last().map_or(0, |last| last.as_raw_fd() + 1);
    println!("{} {told} {can} {errno}", held.maximum.unwrap_or(u64::MAX));
}

fn files(allowed: &Path, other: &Path) {
    close_with(
        Profile::Vault,
        &[
            (allowed, Access::ReadWrite),
            (&other.join("config"), Access::Read),
        ],
    )
    .expect("closing in");
    fs::write(allowed.join("new"), "1").expect("a file in its folder");
    fs::rename(allowed.join("new"), allowed.join("old")).expect("renaming in its folder");
    fs::read(other.join("config")).expect("its configuration");
    let outcomes = [
        fs::write(other.join("config"), "2"),
        fs::write(other.join("new"), "2"),
        fs::read(other.join("secret")).map(drop),
        fs::read("/etc/passwd").map(drop),
        fs::rename(allowed.join("old"), other.join("old")),
    ];
    for outcome in outcomes {
        println!("{}", outcome.expect_err("outside its folder").kind());
    }
}

fn report(profile: Profile) {
    for report in enter(profile) {
        println!("{}\t{}\t{}", report.layer, report.in_force, report.detail);
    }
}

fn threads_before() {
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || stopped.recv());
    println!("{}", before_engine().expect_err("two threads"));
    for report in close(Profile::Vault).expect("closing in") {
        if ["landlock", "capabilities"].contains(&report.layer.as_str()) {
            println!("{} {}", report.layer, report.in_force);
        }
    }
    drop(stop);
    let _ = thread.join();
}
