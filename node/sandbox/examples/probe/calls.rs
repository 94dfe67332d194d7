//! Tries system calls by number, each in a process of its own under the filter.

#![allow(unsafe_code, reason = "a hostile program")]

use std::io::Write;

use casemate_sandbox::Profile;

use crate::enter;

/// Beyond the newest number of any known kernel.
const NUMBERS: std::ops::RangeInclusive<i64> = 0..=470;
/// The bit of numbers of the x32 entry, which offers the same calls under other numbers.
const X32: i64 = 0x4000_0000;
/// A call that the filter allows may block; then this ends it.
const PATIENCE_SECS: u32 = 1;

const RETURNED: i32 = 42;
const NO_SUCH_CALL: i32 = 43;

/// Prints `number outcome` for each call.
pub(crate) fn every_number(profile: Profile) {
    let x32 = NUMBERS.map(|number| number | X32);
    for number in NUMBERS.chain(x32).chain([-1, 1000, i64::from(i32::MAX)]) {
        print(number, &outcome(profile, number, [-1; 6]));
    }
}

/// Each of `words` is `number:argument,argument,...`; missing arguments are -1.
pub(crate) fn one(profile: Profile, words: &[&str]) {
    for word in words {
        let (number, arguments) = word.split_once(':').expect("number:arguments");
        let mut all = [-1; 6];
        for (place, argument) in all
            .iter_mut()
            .zip(arguments.split(',').filter(|argument| !argument.is_empty()))
        {
            *place = argument.parse().expect("a number");
        }
        let number = number.parse().expect("a number");
        print(number, &outcome(profile, number, all));
    }
}

/// Calls getpid by the 32-bit entry, which has other numbers.
#[cfg(target_arch = "x86_64")]
pub(crate) fn other_entry(profile: Profile) {
    let outcome = in_child(profile, || {
        // SAFETY: number 20 of the 32-bit table is getpid, which takes nothing and touches no memory; the kernel keeps all
        // registers but eax, and r8 to r11, which are named.
        unsafe {
            std::arch::asm!("int 0x80", inout("eax") 20 => _, out("r8") _, out("r9") _, out("r10") _, out("r11") _);
        }
        RETURNED
    });
    print(20, &outcome);
}

/// This architecture's 32-bit entry needs a 32-bit program.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn other_entry(_: Profile) {
    print(20, "blocked");
}

fn print(number: i64, outcome: &str) {
    writeln!(std::io::stdout(), "{number} {outcome}").expect("standard output");
}

fn outcome(profile: Profile, number: i64, [a, b, c, d, e, f]: [i64; 6]) -> String {
    in_child(profile, move || {
        // SAFETY: the call affects a process that ends in the next statement. With -1 for every
        // argument, no call that a policy allows finds memory to write to or a descriptor to use.
        let result = unsafe { libc::syscall(number, a, b, c, d, e, f) };
        let error = std::io::Error::last_os_error().raw_os_error();
        if result == -1 && error == Some(libc::ENOSYS) {
            NO_SUCH_CALL
        } else {
            RETURNED
        }
    })
}

fn in_child(profile: Profile, attempt: impl FnOnce() -> i32) -> String {
    // SAFETY: this program has one thread, so the child is a whole copy; it ends by _exit and never
    // returns from here.
    match unsafe { libc::fork() } {
        -1 => panic!("fork: {}", std::io::Error::last_os_error()),
        0 => {
            // SAFETY: sets a timer of this process.
            unsafe { libc::alarm(PATIENCE_SECS) };
            enter(profile);
            let code = attempt();
            // SAFETY: ends the process.
            unsafe { libc::_exit(code) }
        }
        child => {
            let mut status = 0;
            // SAFETY: `status` outlives the call.
            assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
            if libc::WIFSIGNALED(status) {
                match libc::WTERMSIG(status) {
                    libc::SIGSYS => "blocked".to_owned(),
                    signal => format!("signal {signal}"),
                }
            } else {
                match libc::WEXITSTATUS(status) {
                    RETURNED => "returned".to_owned(),
                    NO_SUCH_CALL => "no such call".to_owned(),
                    101 => "panicked".to_owned(),
                    code => format!("exit {code}"),
                }
            }
        }
    }
}
