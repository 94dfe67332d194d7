//! The kernel's figures on memory and open ports, as lines for the console.

use std::fs;

/// Used and total memory, as a line for the console.
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

/// Ports below this number are given only to programs that ask for them.
const FIRST_EPHEMERAL_PORT: u16 = 32_768;
/// Tables of sockets, and the state of a socket that accepts from any peer
/// (`include/net/tcp_states.h`).
const SOCKETS: [(&str, &str, &str); 4] = [
    ("tcp", "/proc/net/tcp", "0A"),
    ("tcp", "/proc/net/tcp6", "0A"),
    ("udp", "/proc/net/udp", "07"),
    ("udp", "/proc/net/udp6", "07"),
];

/// The open ports in the kernel's tables, as a line for the console.
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
