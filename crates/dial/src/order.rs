//! The order in which checked addresses are tried.

use std::net::IpAddr;

/// Most addresses of one name that are tried.
pub(crate) const ADDRESSES_MAX: usize = 8;

/// Distinct addresses with the families taking turns, the resolver's first choice first.
pub(crate) fn interleave(addresses: &[IpAddr]) -> Vec<IpAddr> {
    let mut distinct: Vec<IpAddr> = Vec::new();
    for address in addresses {
        if !distinct.contains(address) {
            distinct.push(*address);
        }
    }
    let leads_v6 = distinct.first().is_some_and(IpAddr::is_ipv6);
    let (mut lead, mut follow): (Vec<_>, Vec<_>) =
        distinct.into_iter().partition(|address| address.is_ipv6() == leads_v6);
    lead.reverse();
    follow.reverse();
    let mut ordered = Vec::new();
    while ordered.len() < ADDRESSES_MAX && !(lead.is_empty() && follow.is_empty()) {
        ordered.extend(lead.pop());
        ordered.extend(follow.pop());
    }
    ordered.truncate(ADDRESSES_MAX);
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_take_turns_and_doubles_go() {
        let parse = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpAddr>>();
        let given = parse(&["2600::1", "2600::2", "2600::1", "1.1.1.1", "1.1.1.2", "1.1.1.3"]);
        let ordered = parse(&["2600::1", "1.1.1.1", "2600::2", "1.1.1.2", "1.1.1.3"]);
        assert_eq!(interleave(&given), ordered);
        let many: Vec<IpAddr> = (1..30).map(|last| IpAddr::from([1, 1, 1, last])).collect();
        assert_eq!(interleave(&many), many[..ADDRESSES_MAX]);
        assert_eq!(interleave(&[]), Vec::<IpAddr>::new());
    }
}
