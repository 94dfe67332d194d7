//! Decides which resolved addresses may be dialled. The checked address is the one that is then
//! dialled.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// IPv4 ranges that are not the public internet (IANA's special-purpose registries, RFC 6890 and
/// its successors).
const SPECIAL_V4: &[([u8; 4], u8)] = &[
    ([0, 0, 0, 0], 8),
    ([10, 0, 0, 0], 8),
    ([100, 64, 0, 0], 10),
    ([127, 0, 0, 0], 8),
    ([169, 254, 0, 0], 16),
    ([172, 16, 0, 0], 12),
    ([192, 0, 0, 0], 24),
    ([192, 0, 2, 0], 24),
    ([192, 31, 196, 0], 24),
    ([192, 52, 193, 0], 24),
    ([192, 88, 99, 0], 24),
    ([192, 168, 0, 0], 16),
    ([192, 175, 48, 0], 24),
    ([198, 18, 0, 0], 15),
    ([198, 51, 100, 0], 24),
    ([203, 0, 113, 0], 24),
    ([224, 0, 0, 0], 4),
    ([240, 0, 0, 0], 4),
];

/// The public part of IPv6; the exceptions are tunnels and documentation ranges in it.
const PUBLIC_V6: ([u16; 8], u8) = ([0x2000, 0, 0, 0, 0, 0, 0, 0], 3);
const SPECIAL_V6: &[([u16; 8], u8)] = &[
    // Teredo, ORCHID, benchmarking and the rest of the IETF's block.
    ([0x2001, 0, 0, 0, 0, 0, 0, 0], 23),
    ([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0], 32),
    // 6to4 contains an IPv4 address.
    ([0x2002, 0, 0, 0, 0, 0, 0, 0], 16),
    ([0x2620, 0x4f, 0x8000, 0, 0, 0, 0, 0], 48),
    ([0x3fff, 0, 0, 0, 0, 0, 0, 0], 20),
];

/// Whether an address is on the public internet.
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let within = |(base, length): &([u8; 4], u8)| {
                Ipv4Net::new(Ipv4Addr::from(*base), *length).is_ok_and(|net| net.contains(&v4))
            };
            !SPECIAL_V4.iter().any(within)
        }
        IpAddr::V6(v6) => {
            let within = |(base, length): &([u16; 8], u8)| {
                Ipv6Net::new(Ipv6Addr::from(*base), *length).is_ok_and(|net| net.contains(&v6))
            };
            within(&PUBLIC_V6) && !SPECIAL_V6.iter().any(within)
        }
    }
}

/// The addresses that may be dialled, in order: public ones, and those that the operator allowed.
pub fn dialable(resolved: &[IpAddr], allowed: &[IpNet]) -> Vec<IpAddr> {
    let may = |address: &&IpAddr| {
        is_public(**address) || allowed.iter().any(|net| net.contains(*address))
    };
    resolved.iter().filter(may).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_loopback_link_local_mapped_and_tunnelled_addresses_are_not_public() {
        let special = [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "127.0.0.1",
            "127.255.255.255",
            "169.254.169.254",
            "172.31.255.255",
            "192.168.0.1",
            "198.18.0.1",
            "198.19.255.255",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:8.8.8.8",
            "::7f00:1",
            "64:ff9b::7f00:1",
            "64:ff9b:1::1",
            "fe80::1",
            "fc00::1",
            "fdff::1",
            "ff02::1",
            "2002:7f00:1::",
            "2001::1",
            "2001:db8::1",
            "100::1",
            "fec0::1",
        ];
        for address in special {
            assert!(!is_public(address.parse().unwrap()), "{address}");
        }
        for address in [
            "8.8.8.8",
            "1.1.1.1",
            "172.32.0.1",
            "2606:4700::1111",
            "2a00:1450::1",
        ] {
            assert!(is_public(address.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn the_operator_may_allow_some() {
        let resolved = [
            "127.0.0.1".parse().unwrap(),
            "8.8.8.8".parse().unwrap(),
            "10.0.0.1".parse().unwrap(),
        ];
        assert_eq!(dialable(&resolved, &[]), [resolved[1]]);
        assert_eq!(
            dialable(&resolved, &["127.0.0.0/8".parse().unwrap()]),
            [resolved[0], resolved[1]]
        );
    }
}
