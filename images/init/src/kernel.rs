//! What the kernel needs to be told before anything else can run.

use std::ffi::CStr;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use casemate_trust::image::ImageVersion;
use rustix::fs::CWD;
use rustix::mount::{MountFlags, mount};
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::system::{RebootCommand, finit_module, reboot};
use serde::Deserialize;

use crate::Failure;
use crate::console::Problem;

const IMAGE: &str = "/etc/casemate/image.json";
const MODULES: &str = "/lib/modules";
const MODULE_ORDER: &str = "/lib/modules/order";

/// What the image says of itself.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Image {
    pub(crate) version: ImageVersion,
    pub(crate) profile: String,
    /// Unix time, seconds, at which it was made.
    pub(crate) time: u32,
}

impl Image {
    pub(crate) fn read() -> Result<Self, Failure> {
        let text = fs::read(IMAGE).map_err(Failure::step(format!("read {IMAGE}")))?;
        serde_json::from_slice(&text).map_err(|_| Failure::Image(IMAGE))
    }
}

/// Source, folder, kind, flags, options.
type Mount = (&'static str, &'static str, MountFlags, &'static CStr);

/// In this order: later ones stand in earlier ones.
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
            // The kernel has mounted /dev by itself already.
            Ok(()) | Err(rustix::io::Errno::BUSY) => {}
            Err(error) => return Err(Failure::step(format!("mount {folder}"))(error)),
        }
    }
    Ok(())
}

/// Descriptors that a program may have open: as many as the kernel allows by itself (`fs.nr_open`).
const DESCRIPTORS: u64 = 1024 * 1024;

/// Settings of a kernel that runs strangers' code: path under /proc/sys, and value.
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
    // `default` is what interfaces begin with that are found later, and theirs is what counts.
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
    // Each of thousands of workers has many small mappings.
    ("vm/max_map_count", "1048576"),
];

/// Makes the kernel strict. A setting that this kernel does not have is left out.
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
    // No core dump of a process that has opened a secret: everything that we start has this limit
    // too.
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none).map_err(Failure::step("forbid core dumps"))?;
    // Callers and workers have a descriptor each.
    let many = Rlimit {
        current: Some(DESCRIPTORS),
        maximum: Some(DESCRIPTORS),
    };
    setrlimit(Resource::Nofile, many).map_err(Failure::step("raise the limit of descriptors"))?;
    // Ctrl-Alt-Del asks us instead of ending the machine at once. A machine without a keyboard may
    // not know it.
    let _ = reboot(RebootCommand::CadOff);
    Ok(())
}

/// Loads a module of the root.
pub(crate) fn load_module(name: &str, parameters: &CStr) -> io::Result<()> {
    let file = File::open(Path::new(MODULES).join(name))?;
    Ok(finit_module(file, parameters, 0)?)
}

/// Loads those that are listed, in their order; what could not be loaded. A machine needs not all
/// of them.
pub(crate) fn load_modules() -> Vec<Problem> {
    let order = fs::read_to_string(MODULE_ORDER).unwrap_or_default();
    let failed = order
        .lines()
        .filter_map(|name| match load_module(name, c"") {
            Ok(()) => None,
            // No device that it is for, or it is there already.
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
                "restart; if it stays, the image is damaged: write it anew",
            )),
        });
    failed.collect()
}

/// How much memory is used, of how much: a line for people.
pub(crate) fn memory() -> String {
    memory_of(&fs::read_to_string("/proc/meminfo").unwrap_or_default())
}

/// `proc_meminfo(5)`: kB are KiB.
fn memory_of(text: &str) -> String {
    let mib = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
        Some(kib / 1024)
    };
    match (mib("MemTotal:"), mib("MemAvailable:")) {
        (Some(total), Some(free)) => format!("{} of {total} MiB used", total.saturating_sub(free)),
        _ => "unknown".to_owned(),
    }
}

/// Below it the kernel gives no port to who does not ask for one.
const FIRST_EPHEMERAL_PORT: u16 = 32_768;
/// Tables of sockets, and what one that takes from anybody has as its state
/// (`include/net/tcp_states.h`).
const SOCKETS: [(&str, &str, &str); 4] = [
    ("tcp", "/proc/net/tcp", "0A"),
    ("tcp", "/proc/net/tcp6", "0A"),
    ("udp", "/proc/net/udp", "07"),
    ("udp", "/proc/net/udp6", "07"),
];

/// The ports that are open, as the kernel has them: a line for people.
pub(crate) fn ports() -> String {
    let mut open = std::collections::BTreeSet::new();
    for (kind, table, state) in SOCKETS {
        let text = fs::read_to_string(table).unwrap_or_default();
        open.extend(ports_in(&text, state).map(|port| format!("{kind} {port}")));
    }
    open.into_iter().collect::<Vec<_>>().join(", ")
}

fn ports_in<'a>(table: &'a str, state: &'a str) -> impl Iterator<Item = u16> + 'a {
    let rows = table.lines().skip(1).filter_map(move |row| {
        let mut fields = row.split_whitespace().skip(1);
        let local = fields.next()?;
        let is_open = fields.nth(1)? == state;
        let port = u16::from_str_radix(local.rsplit(':').next()?, 16).ok()?;
        is_open.then_some(port)
    });
    rows.filter(|port| *port < FIRST_EPHEMERAL_PORT)
}

/// A file of JSON of at most so many bytes, if it is there.
pub(crate) fn read_json<T: serde::de::DeserializeOwned>(
    path: &Path,
    max_bytes: u64,
) -> io::Result<Option<T>> {
    use io::Read as _;
    let file = match open_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let mut text = Vec::new();
    file.take(max_bytes).read_to_end(&mut text)?;
    Ok(Some(serde_json::from_slice(&text)?))
}

/// Opens a file in a folder of somebody who is believed less than init: no pipe that never begins,
/// and nothing elsewhere.
pub(crate) fn open_file(path: &Path) -> io::Result<File> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    if !file.metadata()?.is_file() {
        return Err(io::Error::other(format!("{} is no file", path.display())));
    }
    Ok(file)
}

/// Puts a file in the place of another, whole or not at all, and on the disk.
pub(crate) fn write_whole(path: &Path, bytes: &[u8], mode: rustix::fs::Mode) -> io::Result<()> {
    use io::Write as _;
    use rustix::fs::{OFlags, openat, rename};
    let folder = path.parent().unwrap_or(Path::new("/"));
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::TRUNC | OFlags::CLOEXEC;
    let mut file = File::from(openat(CWD, &beside, flags, mode)?);
    file.write_all(bytes)?;
    file.sync_all()?;
    rename(&beside, path)?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_of_the_kernel_are_read() {
        let table = "  sl  local_address rem_address   st tx_queue\n\
             0: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000\n\
             1: 0100007F:0050 0100007F:B1F2 01 00000000:00000000 00:00000000\n\
             2: 00000000:B1F2 00000000:0000 0A 00000000:00000000 00:00000000\n";
        assert_eq!(ports_in(table, "0A").collect::<Vec<_>>(), [80]);
        assert_eq!(ports_in("", "0A").count(), 0);
        let text = "MemTotal:         760000 kB\nMemFree: 1 kB\nMemAvailable:     560000 kB\n";
        assert_eq!(memory_of(text), "196 of 742 MiB used");
        assert_eq!(memory_of("MemTotal: x"), "unknown");
    }
}
