//! A hostile native program under each profile: the calls that it can make are those of the policy.

#![allow(clippy::print_stdout)] // Tests print what they skip.

mod probe;

use std::collections::BTreeMap;

use casemate_sandbox::{Call, Profile, Verdict, calls};

const ALL: [(&str, Profile); 4] = [
    ("supervisor", Profile::Supervisor),
    ("gateway", Profile::Gateway),
    ("vault", Profile::Vault),
    ("worker", Profile::Worker),
];

/// uretprobe and uprobe: newer kernels exempt them from every filter, because they act only where a
/// tracer of the machine has set a probe; elsewhere the one ends the process and the other fails.
const PAST_EVERY_FILTER: [(i64, &str); 2] = [(335, "signal 4"), (336, "returned")];

fn outcomes(arguments: &[&str]) -> BTreeMap<i64, String> {
    let lines = probe::run(arguments);
    let outcome = |line: &str| {
        let (number, outcome) = line.split_once(' ').expect("number outcome");
        (number.parse().expect("a number"), outcome.to_owned())
    };
    lines.lines().map(outcome).collect()
}

fn find(profile: Profile, number: i64) -> Option<&'static Call> {
    calls(profile).iter().find(|call| call.number == number)
}

#[test]
fn a_program_that_tries_every_number_reaches_what_its_policy_lists_and_nothing_else() {
    for (name, profile) in ALL {
        let outcomes = outcomes(&["every-call", name]);
        assert!(
            outcomes.len() > 900,
            "{name}: {} numbers tried",
            outcomes.len()
        );
        for (number, outcome) in outcomes {
            if cfg!(target_arch = "x86_64") && PAST_EVERY_FILTER.contains(&(number, &outcome)) {
                continue;
            }
            let expected = match find(profile, number).map(|call| call.verdict) {
                // With -1 for every argument.
                None | Some(Verdict::AllowedForSomeArguments) => outcome == "blocked",
                Some(Verdict::NoSuchCall) => outcome == "no such call",
                Some(Verdict::Allowed) => outcome != "blocked",
            };
            assert!(
                expected,
                "{name}: {number} ({:?}): {outcome}",
                find(profile, number)
            );
        }
    }
}

#[test]
fn the_32_bit_entry_with_its_other_numbers_is_closed() {
    for (name, _) in ALL {
        let outcomes = outcomes(&["other-entry", name]);
        // A kernel without the entry answers with a segmentation fault.
        assert!(
            ["blocked", "signal 11"].contains(&outcomes[&20].as_str()),
            "{name}: {outcomes:?}"
        );
    }
}

/// The outcome of `call` with `arguments` (the others are -1) under the profile.
fn outcome(name: &str, call: i64, arguments: &[i64]) -> String {
    let arguments: Vec<_> = arguments.iter().map(ToString::to_string).collect();
    outcomes(&["call", name, &format!("{call}:{}", arguments.join(","))])
        .remove(&call)
        .expect("an outcome")
}

#[test]
fn a_terminal_takes_no_input_from_us() {
    for (name, _) in ALL {
        assert_eq!(
            outcome(name, libc::SYS_ioctl, &[0, libc::TIOCSTI.cast_signed()]),
            "blocked",
            "{name}"
        );
        assert_eq!(
            outcome(name, libc::SYS_ioctl, &[-1, libc::FIONBIO.cast_signed()]),
            "returned",
            "{name}"
        );
    }
}

#[test]
fn descriptors_keep_their_owner_and_their_signals() {
    for (name, _) in ALL {
        let fcntl = |command: i32| outcome(name, libc::SYS_fcntl, &[-1, command.into()]);
        assert_eq!(fcntl(libc::F_SETOWN), "blocked", "{name}");
        assert_eq!(fcntl(libc::F_NOTIFY), "blocked", "{name}");
        assert_eq!(fcntl(libc::F_GETFL), "returned", "{name}");
    }
}

#[test]
fn a_clone_makes_a_thread_or_nothing() {
    for name in ["supervisor", "gateway", "vault"] {
        let clone = |flags: i32| outcome(name, libc::SYS_clone, &[flags.into(), 0, 0, 0, 0]);
        assert_eq!(clone(libc::SIGCHLD), "blocked", "{name}: a process");
        assert_eq!(
            clone(libc::CLONE_NEWUSER | libc::SIGCHLD),
            "blocked",
            "{name}: a user namespace"
        );
        assert_eq!(
            clone(libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD),
            "blocked",
            "{name}: a vfork"
        );
        assert_eq!(
            outcome(name, libc::SYS_clone3, &[0, 88]),
            "no such call",
            "{name}"
        );
        assert_eq!(
            probe::run(&["thread", name]).trim(),
            "7",
            "{name}: a thread"
        );
    }
}

#[test]
fn a_closed_gateway_still_serves_on_the_ports_that_it_bound() {
    assert_eq!(probe::run(&["serve", "gateway"]).trim(), "served");
}

/// A listener that is shut down is an ordinary socket, and MSG_FASTOPEN would connect it without a
/// call of `connect`.
#[test]
fn a_gateway_cannot_dial_out_with_a_listener_it_has() {
    let flags = |call, index: usize, flags: i32| {
        let mut arguments = [-1; 4];
        arguments[index] = flags.into();
        outcome("gateway", call, &arguments[..=index])
    };
    for (call, index) in [(libc::SYS_sendto, 3), (libc::SYS_sendmsg, 2)] {
        assert_eq!(flags(call, index, libc::MSG_FASTOPEN), "blocked");
        let hidden = libc::MSG_FASTOPEN | libc::MSG_NOSIGNAL;
        assert_eq!(flags(call, index, hidden), "blocked");
        assert_eq!(flags(call, index, libc::MSG_NOSIGNAL), "returned");
    }
}

/// The next gateway gets the same listeners, so an option that is set on one would stay.
#[test]
fn a_gateway_leaves_nothing_on_a_listener_for_the_next_one() {
    let set = |level: i32, option: i32| {
        let arguments = [-1, level.into(), option.into(), 0, 0];
        outcome("gateway", libc::SYS_setsockopt, &arguments)
    };
    for (level, option) in [
        (libc::SOL_SOCKET, libc::SO_ATTACH_FILTER),
        (libc::SOL_SOCKET, libc::TCP_NODELAY),
        (libc::IPPROTO_IP, libc::IP_MINTTL),
        (libc::IPPROTO_TCP, libc::TCP_MD5SIG),
        (libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT),
    ] {
        assert_eq!(set(level, option), "blocked", "{level} {option}");
    }
    assert_eq!(set(libc::IPPROTO_TCP, libc::TCP_NODELAY), "returned");
}

#[test]
fn sockets_are_of_the_families_that_a_program_needs() {
    let socket = |name, family: i32| {
        outcome(
            name,
            libc::SYS_socket,
            &[family.into(), libc::SOCK_STREAM.into(), 0],
        )
    };
    for name in ["supervisor", "vault"] {
        for family in [
            libc::AF_NETLINK,
            libc::AF_PACKET,
            libc::AF_ALG,
            libc::AF_VSOCK,
            libc::AF_BLUETOOTH,
        ] {
            assert_eq!(socket(name, family), "blocked", "{name}: family {family}");
        }
        assert_eq!(socket(name, libc::AF_INET), "returned", "{name}");
        assert_eq!(socket(name, libc::AF_INET6), "returned", "{name}");
    }
    assert_eq!(socket("vault", libc::AF_UNIX), "blocked");
    assert_eq!(socket("supervisor", libc::AF_UNIX), "returned");
    for name in ["gateway", "worker"] {
        assert_eq!(socket(name, libc::AF_INET), "blocked", "{name}");
    }
}

#[test]
fn a_gateway_opens_files_for_reading_only_and_landlock_says_which() {
    let open = |flags: i32| {
        let arguments = [libc::AT_FDCWD.into(), 0, flags.into(), 0];
        outcome("gateway", libc::SYS_openat, &arguments)
    };
    assert_eq!(open(libc::O_RDONLY | libc::O_CLOEXEC), "returned");
    for flags in [
        libc::O_RDONLY,
        libc::O_WRONLY | libc::O_CLOEXEC,
        libc::O_RDWR | libc::O_CLOEXEC,
        libc::O_RDONLY | libc::O_CLOEXEC | libc::O_CREAT,
        libc::O_PATH | libc::O_CLOEXEC,
    ] {
        assert_eq!(open(flags), "blocked", "{flags:o}");
    }
}

#[test]
fn a_program_stays_undumpable() {
    for name in ["supervisor", "gateway", "vault", "worker"] {
        let prctl = |option: i32| outcome(name, libc::SYS_prctl, &[option.into(), 1, 0, 0, 0]);
        assert_eq!(prctl(libc::PR_SET_DUMPABLE), "blocked", "{name}");
        assert_eq!(prctl(libc::PR_SET_SECCOMP), "blocked", "{name}");
    }
}

#[test]
fn the_vault_reaches_its_folder_and_its_configuration_only() {
    let folder = tempfile::tempdir().unwrap();
    let (allowed, other) = (folder.path().join("allowed"), folder.path().join("other"));
    for folder in [&allowed, &other] {
        std::fs::create_dir(folder).unwrap();
    }
    for file in ["config", "secret"] {
        std::fs::write(other.join(file), file).unwrap();
    }
    let layers = probe::run(&["report", "vault"]);
    if !layers.contains("landlock\ttrue") {
        println!(
            "skipped: this kernel has no Landlock, which is what keeps the vault to its files"
        );
        return;
    }
    let kinds = probe::run(&["files", allowed.to_str().unwrap(), other.to_str().unwrap()]);
    let kinds: Vec<_> = kinds.lines().collect();
    let denied = "permission denied";
    assert_eq!(kinds[..4], [denied; 4]);
    assert!(
        [denied, "cross-device link or rename"].contains(&kinds[4]),
        "{}",
        kinds[4]
    );
    assert_eq!(std::fs::read(other.join("config")).unwrap(), b"config");
}

#[test]
fn each_program_reports_what_it_did_to_itself() {
    for (name, _) in ALL {
        let text = probe::run(&["report", name]);
        let reports: BTreeMap<_, _> = text
            .lines()
            .filter_map(|line| line.split_once('\t'))
            .collect();
        assert_eq!(
            reports.len(),
            casemate_sandbox::LAYERS.len(),
            "{name}: each layer once\n{text}"
        );
        for layer in [
            "no_new_privs",
            "capabilities",
            "rlimits",
            "seccomp",
            "dumpable",
        ] {
            assert!(
                reports[layer].starts_with("true"),
                "{name}: {layer}: {text}"
            );
        }
        // No starter has given the program these layers.
        for layer in ["user", "pid", "mount", "network", "ipc", "uts", "cgroup"] {
            assert!(
                reports[layer].starts_with("false"),
                "{name}: {layer}: {text}"
            );
        }
    }
}

#[test]
fn as_many_descriptors_as_were_raised_to_can_be_had_behind_the_walls() {
    for name in ["supervisor", "gateway", "vault"] {
        let text = probe::run(&["descriptors", name]);
        let numbers: Vec<u64> = text
            .split(' ')
            .map_while(|word| word.parse().ok())
            .collect();
        let [hard, told, can] = numbers[..] else {
            panic!("{name}: {text}")
        };
        assert_eq!(told, hard.clamp(64, 65_536), "{name}");
        assert_eq!(can, told, "{name}: {text}");
        assert!(text.contains("(os error 24)"), "{name}: {text}");
    }
}

#[test]
fn a_sandbox_of_one_thread_is_not_reported_as_in_force() {
    let lines = probe::run(&["threads-before"]);
    assert_eq!(
        lines.lines().collect::<Vec<_>>(),
        [
            "expected to be the only thread, but there are 2",
            "capabilities false",
            "landlock false"
        ]
    );
}
