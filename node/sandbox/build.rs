//! Compiles `policies/*.json` to seccomp-BPF for the target, and lists their calls for the crate.
//!
//! A policy file is reviewed data: `{"allow": [{"call", "why", "args"?, "arch"?}], "no_such_call": [{"call", "why"}]}`.
//! `args` is a list of `{"index", "any": [symbol]}` that must all hold. A call that is in neither
//! list kills the process.

use std::collections::BTreeSet;
use std::path::Path;
use std::{env, fs};

use seccompiler::{BpfProgram, TargetArch, compile_from_json, sock_filter};
use serde::Deserialize;

const PROFILES: [&str; 4] = ["supervisor", "gateway", "vault", "worker"];

/// Symbols that policies may use in `any`; they have the same numbers on every architecture that we
/// build for.
const SYMBOLS: &[(&str, i64)] = &[
    ("AF_INET", libc::AF_INET as i64),
    ("AF_INET6", libc::AF_INET6 as i64),
    ("AF_UNIX", libc::AF_UNIX as i64),
    (
        "CLONE_OF_A_THREAD",
        (libc::CLONE_VM
            | libc::CLONE_FS
            | libc::CLONE_FILES
            | libc::CLONE_SIGHAND
            | libc::CLONE_THREAD
            | libc::CLONE_SYSVSEM
            | libc::CLONE_SETTLS
            | libc::CLONE_PARENT_SETTID
            | libc::CLONE_CHILD_CLEARTID) as i64,
    ),
    ("FIONBIO", libc::FIONBIO as i64),
    ("F_ADD_SEALS", libc::F_ADD_SEALS as i64),
    ("F_DUPFD_CLOEXEC", libc::F_DUPFD_CLOEXEC as i64),
    ("F_GETFD", libc::F_GETFD as i64),
    ("F_GETFL", libc::F_GETFL as i64),
    ("F_GET_SEALS", libc::F_GET_SEALS as i64),
    ("F_OFD_SETLK", libc::F_OFD_SETLK as i64),
    ("F_SETFD", libc::F_SETFD as i64),
    ("F_SETFL", libc::F_SETFL as i64),
    ("F_SETLK", libc::F_SETLK as i64),
    ("IPPROTO_TCP", libc::IPPROTO_TCP as i64),
    ("MSG_NOSIGNAL", libc::MSG_NOSIGNAL as i64),
    ("NO_FLAG", 0),
    (
        "O_RDONLY_CLOEXEC",
        (libc::O_RDONLY | libc::O_CLOEXEC) as i64,
    ),
    ("PR_GET_AUXV", 0x4155_5856),
    ("PR_SET_NAME", libc::PR_SET_NAME as i64),
    ("SELF", 0),
    ("TCP_NODELAY", libc::TCP_NODELAY as i64),
];

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Policy {
    allow: Vec<Allowed>,
    #[serde(default)]
    no_such_call: Vec<Refused>,
}

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Allowed {
    call: String,
    why: String,
    #[serde(default)]
    args: Vec<Argument>,
    #[serde(default)]
    arch: Option<String>,
}

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Argument {
    index: u8,
    any: Vec<String>,
}

/// A call that fails with ENOSYS, so that the C library falls back to an older call whose arguments
/// can be judged.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Refused {
    call: String,
    why: String,
}

impl Policy {
    /// The policy without the calls of other architectures.
    fn on(&self, arch: &str) -> Self {
        let mut policy = self.clone();
        let here = |allowed: &Allowed| allowed.arch.as_ref().is_none_or(|only| only == arch);
        policy.allow.retain(here);
        policy
    }
}

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=policies");
    let out = env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    let arch = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets CARGO_CFG_TARGET_ARCH");
    for profile in PROFILES {
        let path = format!("policies/{profile}.json");
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        let policy: Policy =
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}"));
        review(&path, &policy);
        // Compiled for every architecture, so that a call which one of them lacks is noticed on the
        // others.
        for other in ["x86_64", "aarch64"] {
            compile(&path, &policy.on(other), other);
        }
        let policy = policy.on(&arch);
        let program = compile(&path, &policy, &arch);
        let out = Path::new(&out);
        fs::write(out.join(format!("{profile}.bpf")), bytes(&program))
            .expect("OUT_DIR is writable");
        fs::write(out.join(format!("{profile}.rs")), listing(&policy))
            .expect("OUT_DIR is writable");
    }
}

/// Checks what the compiler would not notice: a call that occurs twice, or one without a reason.
fn review(path: &str, policy: &Policy) {
    let allowed = policy.allow.iter().map(|entry| (&entry.call, &entry.why));
    let refused = policy
        .no_such_call
        .iter()
        .map(|entry| (&entry.call, &entry.why));
    let mut seen = BTreeSet::new();
    for (call, why) in allowed.chain(refused) {
        assert!(seen.insert(call), "{path}: {call} occurs twice");
        assert!(!why.trim().is_empty(), "{path}: {call} has no reason");
    }
}

fn compile(path: &str, policy: &Policy, arch: &str) -> BpfProgram {
    let mut rules = Vec::new();
    for allowed in &policy.allow {
        for conditions in combinations(path, &allowed.args) {
            let mut rule = serde_json::json!({ "syscall": allowed.call });
            if !conditions.is_empty() {
                rule["args"] = conditions.into();
            }
            rules.push(rule);
        }
    }
    let refused = policy
        .no_such_call
        .iter()
        .map(|refused| number(path, &refused.call, arch));
    let source = thread_filter(rules);
    let mut program = refuse(refused.collect());
    program.extend(compile_json(path, &source, arch));
    program
}

fn thread_filter(rules: Vec<serde_json::Value>) -> serde_json::Value {
    serde_json::json!({ "all": { "mismatch_action": "kill_process", "match_action": "allow", "filter": rules } })
}

fn compile_json(path: &str, source: &serde_json::Value, arch: &str) -> BpfProgram {
    let target = TargetArch::try_from(arch)
        .unwrap_or_else(|error| panic!("no seccomp policy for {arch}: {error}"));
    let mut programs = compile_from_json(source.to_string().as_bytes(), target)
        .unwrap_or_else(|error| panic!("{path}: {error:?}"));
    programs
        .remove("all")
        .expect("the one filter of the source")
}

/// Every combination that satisfies all arguments, as seccompiler's `args`.
fn combinations(path: &str, args: &[Argument]) -> Vec<Vec<serde_json::Value>> {
    let mut all = vec![Vec::new()];
    for arg in args {
        let grown = all.iter().flat_map(|start| {
            arg.any.iter().map(|symbol| {
                let known = SYMBOLS.iter().find(|(name, _)| name == symbol);
                let (_, value) = known.unwrap_or_else(|| panic!("{path}: {symbol} is not a symbol of build.rs"));
                let mut grown = start.clone();
                grown.push(serde_json::json!({ "index": arg.index, "type": "dword", "op": "eq", "val": value }));
                grown
            })
        });
        all = grown.collect();
    }
    all
}

/// A call's number: the value with which a filter of that call alone compares, because seccompiler
/// does not expose its table.
fn number(path: &str, call: &str, arch: &str) -> u32 {
    let alone = |rules| compile_json(path, &thread_filter(rules), arch);
    let with = alone(vec![serde_json::json!({ "syscall": call })]);
    let without = alone(Vec::new());
    let load = with
        .iter()
        .position(|step| step.code == LOAD && step.k == 0)
        .expect("a load of the number");
    assert!(
        with.len() > without.len() && with[load + 1].code == JUMP_EQ,
        "{path}: unexpected code for {call}"
    );
    with[load + 1].k
}

/// BPF_LD | BPF_W | BPF_ABS.
const LOAD: u16 = 0x20;
/// BPF_JMP | BPF_JEQ | BPF_K.
const JUMP_EQ: u16 = 0x15;
/// BPF_RET | BPF_K.
const RETURN: u16 = 0x06;

/// A prologue that makes these numbers fail with ENOSYS. It runs before the check of the
/// architecture, which is safe, because a failed call is never wider than the rules that follow.
fn refuse(numbers: Vec<u32>) -> BpfProgram {
    if numbers.is_empty() {
        return Vec::new();
    }
    let mut program = vec![sock_filter {
        code: LOAD,
        jt: 0,
        jf: 0,
        k: 0,
    }];
    for number in numbers {
        program.push(sock_filter {
            code: JUMP_EQ,
            jt: 0,
            jf: 1,
            k: number,
        });
        let answer = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
        program.push(sock_filter {
            code: RETURN,
            jt: 0,
            jf: 0,
            k: answer,
        });
    }
    program
}

fn bytes(program: &BpfProgram) -> Vec<u8> {
    let step = |step: &sock_filter| {
        let mut bytes = [0; 8];
        bytes[..2].copy_from_slice(&step.code.to_ne_bytes());
        bytes[2] = step.jt;
        bytes[3] = step.jf;
        bytes[4..].copy_from_slice(&step.k.to_ne_bytes());
        bytes
    };
    program.iter().flat_map(step).collect()
}

fn listing(policy: &Policy) -> String {
    let row = |call: &str, why: &str, verdict: &str| {
        format!(
            "Call {{ name: {call:?}, number: libc::SYS_{call}, verdict: Verdict::{verdict}, why: {why:?} }},\n"
        )
    };
    let allowed = policy.allow.iter().map(|entry| {
        let verdict = if entry.args.is_empty() {
            "Allowed"
        } else {
            "AllowedForSomeArguments"
        };
        row(&entry.call, &entry.why, verdict)
    });
    let refused = policy
        .no_such_call
        .iter()
        .map(|entry| row(&entry.call, &entry.why, "NoSuchCall"));
    format!("&[\n{}]", allowed.chain(refused).collect::<String>())
}
