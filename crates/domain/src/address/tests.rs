//! C12, C13, C14: every range at its edges, every carried form, and what exceptions can and cannot do.

use super::*;
use proptest::prelude::*;

fn host(text: &str) -> Host {
    Host::parse(text).unwrap()
}

fn check(address: &str) -> Result<(), Refusal> {
    Floor::default().check(&host("example.com"), 443, address.parse().unwrap())
}

fn exception(name: &str, port: u16, cidr: &str) -> Exception {
    Exception { name: Pattern::parse(name).unwrap(), port, cidr: parse_cidr(cidr).unwrap() }
}

#[test]
fn c14_each_range_from_its_first_to_its_last_address_and_not_beyond() {
    for (first, last, before, after) in [
        ("0.0.0.0", "0.255.255.255", None, Some("1.0.0.0")),
        ("10.0.0.0", "10.255.255.255", Some("9.255.255.255"), Some("11.0.0.0")),
        ("100.64.0.0", "100.127.255.255", Some("100.63.255.255"), Some("100.128.0.0")),
        ("127.0.0.0", "127.255.255.255", Some("126.255.255.255"), Some("128.0.0.0")),
        ("169.254.0.0", "169.254.255.255", Some("169.253.255.255"), Some("169.255.0.0")),
        ("172.16.0.0", "172.31.255.255", Some("172.15.255.255"), Some("172.32.0.0")),
        ("192.0.0.0", "192.0.0.255", Some("191.255.255.255"), Some("192.0.1.0")),
        ("192.0.2.0", "192.0.2.255", Some("192.0.1.255"), Some("192.0.3.0")),
        ("192.88.99.0", "192.88.99.255", Some("192.88.98.255"), Some("192.88.100.0")),
        ("192.168.0.0", "192.168.255.255", Some("192.167.255.255"), Some("192.169.0.0")),
        ("198.18.0.0", "198.19.255.255", Some("198.17.255.255"), Some("198.20.0.0")),
        ("198.51.100.0", "198.51.100.255", Some("198.51.99.255"), Some("198.51.101.0")),
        ("203.0.113.0", "203.0.113.255", Some("203.0.112.255"), Some("203.0.114.0")),
        ("224.0.0.0", "255.255.255.255", Some("223.255.255.255"), None),
        ("168.63.129.16", "168.63.129.16", Some("168.63.129.15"), Some("168.63.129.17")),
        ("::", "::ffff:ffff", None, None),
        ("100::", "100::ffff:ffff:ffff:ffff", None, Some("100:0:0:1::")),
        ("2001:db8::", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", Some("2001:db7::"), Some("2001:db9::")),
        ("3fff::", "3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff", Some("3ffe::"), Some("3fff:1000::")),
        ("5f00::", "5f00:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Some("5eff::"), Some("5f01::")),
        ("fc00::", "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Some("fbff::"), Some("fe00::")),
        ("fe80::", "febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Some("fe7f::"), None),
        ("fec0::", "feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", None, None),
        ("ff00::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", None, None),
    ] {
        assert!(check(first).is_err(), "{first}");
        assert!(check(last).is_err(), "{last}");
        for outside in [before, after].into_iter().flatten() {
            assert_eq!(check(outside), Ok(()), "{outside}");
        }
    }
}

#[test]
fn c13_metadata_is_metadata_in_every_spelling() {
    for address in [
        "169.254.169.254",
        "169.254.170.2",
        "169.254.170.23",
        "169.254.0.23",
        "100.100.100.200",
        "192.0.0.192",
        "168.63.129.16",
        "fd00:ec2::254",
        "fd00:ec2::23",
        "fd20:ce::254",
        "::ffff:169.254.169.254",
        "::169.254.169.254",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::a9fe:a9fe",
        "2002:a9fe:a9fe::1",
        "2001:0:4136:e378:8000:63bf:5601:5601",
        "::ffff:0:169.254.169.254",
        "2600::5efe:a9fe:a9fe",
    ] {
        assert_eq!(check(address), Err(Refusal::Metadata), "{address}");
    }
    for name in [
        "metadata.google.internal",
        "x.metadata.google.internal",
        "METADATA.google.internal.",
        "metadata.goog",
        "metadata",
        "instance-data",
        "instance-data.ec2.internal",
        "metadata.azure.internal",
    ] {
        let refused = Floor::default().check(&host(name), 80, "93.184.216.34".parse().unwrap());
        assert_eq!(refused, Err(Refusal::Metadata), "{name}");
    }
    for name in
        ["notmetadata.google.internal", "metadata.example.com", "metadata.google.internal.example.com"]
    {
        assert_eq!(Floor::default().check_name(&host(name)), Ok(()), "{name}");
    }
}

#[test]
fn c12_carriers_are_refused_whatever_they_carry() {
    for address in [
        "::ffff:127.0.0.1",
        "::ffff:8.8.8.8",
        "::127.0.0.1",
        "64:ff9b::8.8.8.8",
        "64:ff9b:1::8.8.8.8",
        "2002:808:808::1",
        "2001::1",
        "::ffff:0:8.8.8.8",
        "2600::5efe:a00:1",
    ] {
        assert!(check(address).is_err(), "{address}");
    }
    assert_eq!(check("2606:4700::1111"), Ok(()));
}

#[test]
fn an_exception_lifts_exactly_what_it_names() {
    let floor = Floor { own: vec![], exceptions: vec![exception("git.corp.example", 443, "10.1.0.0/16")] };
    let address = |text: &str| text.parse::<IpAddr>().unwrap();
    assert_eq!(floor.check(&host("git.corp.example"), 443, address("10.1.2.3")), Ok(()));
    for (name, port, at) in [
        ("git.corp.example", 22, "10.1.2.3"),
        ("evil.example", 443, "10.1.2.3"),
        ("git.corp.example", 443, "10.2.0.1"),
        ("10.1.2.3", 443, "10.1.2.3"),
        // The carrier is another range than the one that was lifted.
        ("git.corp.example", 443, "::ffff:10.1.2.3"),
    ] {
        assert!(floor.check(&host(name), port, address(at)).is_err(), "{name}:{port} at {at}");
    }
}

#[test]
fn a_lifted_carrier_does_not_lift_what_it_carries() {
    let floor = Floor { own: vec![], exceptions: vec![exception("*.example.com", 443, "64:ff9b::/96")] };
    let check = |at: &str| floor.check(&host("a.example.com"), 443, at.parse().unwrap());
    assert_eq!(check("64:ff9b::8.8.8.8"), Ok(()));
    assert!(check("64:ff9b::10.0.0.1").is_err());
    assert_eq!(check("64:ff9b::169.254.169.254"), Err(Refusal::Metadata));
}

#[test]
fn own_addresses_are_refused_unless_excepted() {
    let own = vec![parse_cidr("93.184.216.0/24").unwrap()];
    let mut floor = Floor { own: own.clone(), exceptions: vec![] };
    let at = "93.184.216.34".parse().unwrap();
    assert_eq!(floor.check(&host("a.example"), 443, at), Err(Refusal::Own(own[0])));
    floor.exceptions.push(exception("a.example", 443, "93.184.216.34/32"));
    assert_eq!(floor.check(&host("a.example"), 443, at), Ok(()));
}

#[test]
fn ranges_are_read_strictly() {
    for text in ["10.0.0.0/", "10.0.0.1/8", "10.0.0.0", "10.0.0/8", "10.0.0.0/33", "::1/64", "", "all"] {
        assert!(parse_cidr(text).is_err(), "{text}");
    }
    let json = r#"{"name":"*.corp.example","port":443,"cidr":"10.0.0.0/8"}"#;
    assert_eq!(
        serde_json::from_str::<Exception>(json).unwrap().to_string(),
        "*.corp.example:443 at 10.0.0.0/8"
    );
    assert!(serde_json::from_str::<Exception>(r#"{"name":"a.b","port":1,"cidr":"10.0.0.1/8"}"#).is_err());
    assert!(
        serde_json::from_str::<Exception>(r#"{"name":"a.b","port":1,"cidr":"10.0.0.0/8","x":1}"#).is_err()
    );
}

proptest! {
    #[test]
    fn nothing_lifts_metadata(a: u8, b: u8, port: u16, form in 0usize..5) {
        let v4 = Ipv4Addr::new(169, 254, a, b);
        let [c, d, e, f] = v4.octets().map(u16::from);
        let (high, low) = (c << 8 | d, e << 8 | f);
        let address: IpAddr = match form {
            0 => v4.into(),
            1 => v4.to_ipv6_mapped().into(),
            2 => Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low).into(),
            3 => Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1).into(),
            _ => Ipv6Addr::new(0x2001, 0, 1, 2, 3, 4, !high, !low).into(),
        };
        let exceptions = vec![exception("a.example", port, "0.0.0.0/0"), exception("a.example", port, "::/0")];
        let floor = Floor { own: vec![], exceptions };
        prop_assert_eq!(floor.check(&host("a.example"), port, address), Err(Refusal::Metadata));
    }

    #[test]
    fn whatever_carries_a_refused_address_is_refused(bits: u32) {
        let v4 = Ipv4Addr::from(bits);
        let floor = Floor::default();
        let name = host("a.example");
        if floor.check(&name, 80, v4.into()).is_err() {
            for carrier in [v4.to_ipv6_mapped(), v4.to_ipv6_compatible()] {
                prop_assert!(floor.check(&name, 80, carrier.into()).is_err());
            }
        }
    }

    #[test]
    fn what_passes_is_global(bits: u128, v4: u32) {
        let floor = Floor::default();
        let v4 = Ipv4Addr::from(v4);
        if floor.check(&host("a.example"), 80, v4.into()).is_ok() {
            let is_local = v4.is_private() || v4.is_loopback() || v4.is_link_local() || v4.is_multicast();
            prop_assert!(!is_local && !v4.is_unspecified() && !v4.is_broadcast() && !v4.is_documentation());
        }
        let v6 = Ipv6Addr::from(bits);
        if floor.check(&host("a.example"), 80, v6.into()).is_ok() {
            prop_assert!(!v6.is_unique_local() && !v6.is_unicast_link_local() && !v6.is_multicast());
            prop_assert!(!v6.is_loopback() && v6.to_ipv4_mapped().is_none());
        }
    }
}
