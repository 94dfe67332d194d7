//! Settings of the kernel that are made before anything else runs.

use std::ffi::CStr;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use rustix::mount::{MountFlags, mount};
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::system::{RebootCommand, finit_module, reboot};

use crate::Failure;
use crate::console::Problem;

const MODULES: &str = "/lib/modules";
const MODULE_ORDER: &str = "/lib/modules/order";

/// Source, folder, kind, flags and options of a mount.
type Mount = (&'static str, &'static str, MountFlags, &'static CStr);

/// The mounts, in this order: later ones lie in earlier ones.
fn mounts() -> [Mount; 7] {
    let plain = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    [
        ("proc", "/proc", plain, c""),
        ("sysfs", "/sys", plain, c""),
        (
            "devtmpfs",
            "/dev",
            MountFlags::NOSUID | MountFlags::NOEXEC,
            c"mode=0755",
        ),
        ("tmpfs", "/run", plain, c"mode=0755,size=16m"),
        ("tmpfs", "/tmp", plain, c"mode=1777,size=16m"),
        ("cgroup2", "/sys/fs/cgroup", plain, c""),
        ("securityfs", "/sys/kernel/security", plain, c""),
    ]
}

/// Mounts the kernel's own file systems.
pub(crate) fn mount_all() -> Result<(), Failure> {
    for (kind, folder, flags, options) in mounts() {
        match mount(kind, folder, kind, flags, options) {
            // The kernel has mounted /dev already.
            Ok(()) | Err(rustix::io::Errno::BUSY) => {}
            Err(error) => return Err(Failure::step(format!("mount {folder}"))(error)),
        }
    }
    Ok(())
}

/// Open descriptors that a program may have: the kernel's own default (`fs.nr_open`).
const DESCRIPTORS: u64 = 1024 * 1024;

/// Settings for a kernel that runs untrusted code: path under /proc/sys, and value.
const SETTINGS: &[(&str, &str)] = &[
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/kptr_restrict", "2"),
    ("kernel/dmesg_restrict", "1"),
    ("kernel/perf_event_paranoid", "3"),
    ("kernel/unprivileged_bpf_disabled", "1"),
    ("kernel/kexec_load_disabled", "1"),
    ("kernel/sysrq", "0"),
    ("kernel/yama/ptrace_scope", "2"),
    ("fs/suid_dumpable", "0"),
    ("fs/protected_symlinks", "1"),
    ("fs/protected_hardlinks", "1"),
    ("fs/protected_fifos", "2"),
    ("fs/protected_regular", "2"),
    ("net/core/bpf_jit_harden", "2"),
    // `default` sets the initial value of interfaces that appear later; the interface's own value
    // decides.
    ("net/ipv4/conf/all/accept_redirects", "0"),
    ("net/ipv4/conf/default/accept_redirects", "0"),
    ("net/ipv4/conf/all/secure_redirects", "0"),
    ("net/ipv4/conf/default/secure_redirects", "0"),
    ("net/ipv4/conf/all/send_redirects", "0"),
    ("net/ipv4/conf/default/send_redirects", "0"),
    ("net/ipv4/conf/all/accept_source_route", "0"),
    ("net/ipv4/conf/default/accept_source_route", "0"),
    ("net/ipv6/conf/all/accept_redirects", "0"),
    ("net/ipv6/conf/default/accept_redirects", "0"),
    ("net/ipv4/tcp_syncookies", "1"),
    ("vm/unprivileged_userfaultfd", "0"),
    // Thousands of workers have many small mappings each.
    ("vm/max_map_count", "1048576"),
];

/// Applies the settings. A setting that this kernel does not have is skipped.
pub(crate) fn restrict() -> Result<(), Failure> {
    for (name, value) in SETTINGS {
        let path = Path::new("/proc/sys").join(name);
        match fs::write(&path, value) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Failure::step(format!("set {name}"))(error));
            }
            _ => {}
        }
    }
    // A process that has opened a secret must not dump core: every program that init starts
    // inherits this limit.
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none).map_err(Failure::step("forbid core dumps"))?;
    // Callers and workers need a descriptor each.
    let many = Rlimit {
        current: Some(DESCRIPTORS),
        maximum: Some(DESCRIPTORS),
    };
    setrlimit(Resource::Nofile, many).map_err(Failure::step("raise the limit of descriptors"))?;
    // Ctrl-Alt-Del sends init a signal instead of restarting the machine at once. A machine without
    // a keyboard may not support it.
    let _ = reboot(RebootCommand::CadOff);
    Ok(())
}

/// Loads a kernel module of the root file system.
pub(crate) fn load_module(name: &str, parameters: &CStr) -> io::Result<()> {
    let file = File::open(Path::new(MODULES).join(name))?;
    Ok(finit_module(file, parameters, 0)?)
}

/// Loads the listed modules in their order, and returns a problem for each that failed. No machine
/// needs all of them.
pub(crate) fn load_modules() -> Vec<Problem> {
    let order = fs::read_to_string(MODULE_ORDER).unwrap_or_default();
    let failed = order
        .lines()
        .filter_map(|name| match load_module(name, c"") {
            Ok(()) => None,
            // There is no device for the module, or it is loaded already.
            Err(error)
                if matches!(
                    error
                        .raw_os_error()
                        .map(rustix::io::Errno::from_raw_os_error),
                    Some(rustix::io::Errno::NODEV | rustix::io::Errno::EXIST)
                ) =>
            {
                None
            }
            Err(error) => Some(Problem::new(
                format!("the kernel module {name} cannot be loaded: {error}"),
                "restart; if the failure repeats, the image is damaged: write it to the disk again",
            )),
        });
    failed.collect()
}
