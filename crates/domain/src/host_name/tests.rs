//! Tables of spellings (C3, C10, C18, C19) and the rules that hold for all of them.

use super::*;
use proptest::prelude::*;

fn host(text: &str) -> Host {
    Host::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

#[test]
fn one_spelling_for_each_name() {
    for (text, canonical) in [
        ("api.openai.com", "api.openai.com"),
        ("API.OpenAI.com.", "api.openai.com"),
        ("localhost", "localhost"),
        ("_dmarc.example.com", "_dmarc.example.com"),
        ("r3---sn-abc.example.com", "r3---sn-abc.example.com"),
        ("b\u{fc}cher.example", "xn--bcher-kva.example"),
        ("XN--BCHER-KVA.example", "xn--bcher-kva.example"),
        ("example\u{3002}com", "example.com"),
        ("1.2.3.4.example", "1.2.3.4.example"),
        ("1password.com", "1password.com"),
    ] {
        let parsed = host(text);
        assert_eq!((parsed.as_str(), parsed.address()), (canonical, None), "{text}");
    }
}

#[test]
fn addresses_are_told_apart() {
    for (text, canonical, url) in [
        ("127.0.0.1", "127.0.0.1", "127.0.0.1"),
        ("8.8.8.8.", "8.8.8.8", "8.8.8.8"),
        ("[::1]", "::1", "[::1]"),
        ("::1", "::1", "[::1]"),
        ("[0:0:0:0:0:0:0:1]", "::1", "[::1]"),
        ("::FFFF:169.254.169.254", "::ffff:169.254.169.254", "[::ffff:169.254.169.254]"),
    ] {
        let parsed = host(text);
        assert_eq!(parsed.as_str(), canonical, "{text}");
        assert_eq!(parsed.address(), Some(canonical.parse().unwrap()), "{text}");
        assert_eq!(parsed.url_text(), url, "{text}");
        assert_eq!(parsed.labels().count(), 0);
    }
}

#[test]
fn what_is_no_host_is_refused() {
    let long_name = ["a".repeat(63).as_str(); 4].join(".");
    for text in [
        "",
        ".",
        "..",
        "a..b",
        ".a",
        "a.b..",
        "attacker.com\0.google.com",
        "a\r\nb",
        "a b",
        "a\tb",
        "a%2eb",
        "fe80::1%eth0",
        "[fe80::1%25eth0]",
        "user@host",
        "host:443",
        "[::1",
        "::1]",
        "[::1]x",
        "[127.0.0.1]",
        "http://a",
        "a/b",
        "a\\b",
        "a?b",
        "a#b",
        "127.1",
        "0x7f.1",
        "0x7f000001",
        "2130706433",
        "127.0.0.01",
        "0177.0.0.1",
        "1.2.3.4.5",
        "256.1.1.1",
        "1.2.3",
        "example.1",
        "0x",
        "\u{ff11}27.0.0.1",
        "127.0.0.\u{ff11}",
        "a\u{ff05}b",
        "\u{ff20}a",
        "-a.com",
        "a-.com",
        "xn--.com",
        "xn--a",
        "a\u{202e}b.com",
        &"a".repeat(64),
        &long_name,
        &"a.".repeat(600),
        "*.a.com",
        "a*b.com",
    ] {
        assert!(Host::parse(text).is_err(), "{text:?} became {:?}", Host::parse(text));
    }
}

#[test]
fn authorities() {
    assert_eq!(Host::parse_authority("A.com:8080"), Ok((host("a.com"), Some(8080))));
    assert_eq!(Host::parse_authority("a.com"), Ok((host("a.com"), None)));
    assert_eq!(Host::parse_authority("[::1]:22"), Ok((host("::1"), Some(22))));
    assert_eq!(Host::parse_authority("[::1]"), Ok((host("::1"), None)));
    for text in [
        "a.com:",
        "a.com:0",
        "a.com:65536",
        "a.com:+80",
        "a.com:8 0",
        "u:p@a.com:80",
        "::1:80x",
        "a:b:80",
        ":80",
    ] {
        assert!(Host::parse_authority(text).is_err(), "{text}");
    }
}

#[test]
fn c19_wildcards_have_exact_semantics() {
    let below = Pattern::parse("*.OpenAI.com").unwrap();
    for matching in ["api.openai.com", "a.b.openai.com", "x.openai.com."] {
        assert!(below.matches(&host(matching)), "{matching}");
    }
    for other in
        ["openai.com", "evilopenai.com", "openai.com.evil", "api.openai.com.evil", "com", "127.0.0.1"]
    {
        assert!(!below.matches(&host(other)), "{other}");
    }
    let exact = Pattern::parse("api.openai.com").unwrap();
    assert!(exact.matches(&host("API.openai.com")));
    for other in ["x.api.openai.com", "openai.com", "api.openai.com.evil", "aapi.openai.com"] {
        assert!(!exact.matches(&host(other)), "{other}");
    }
    assert!(Pattern::parse("10.0.0.1").unwrap().matches(&host("10.0.0.1")));
    for text in ["*", "*.", "*.com", "*.*.com", "a.*.com", "*a.com", "**.a.com", "*.10.0.0.1", "*.[::1]", ""]
    {
        assert!(Pattern::parse(text).is_err(), "{text}");
    }
}

fn name() -> impl Strategy<Value = String> {
    "[a-z0-9_]([a-z0-9_-]{0,10}[a-z0-9_])?(\\.[a-z0-9_]([a-z0-9_-]{0,10}[a-z0-9_])?){0,3}\\.[a-z]{2,6}"
}

proptest! {
    #[test]
    fn c18_nothing_but_ldh_ever_comes_out(text in ".{0,40}") {
        if let Ok(host) = Host::parse(&text) {
            let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
            prop_assert!(host.as_str().chars().all(allowed), "{:?}", host);
            prop_assert!(host.as_str().len() <= NAME_BYTES_MAX && !host.as_str().ends_with('.'));
            prop_assert_eq!(host.is_name(), !host.as_str().contains(':') && host.as_str().parse::<IpAddr>().is_err());
        }
    }

    #[test]
    fn parsing_twice_changes_nothing(text in prop_oneof![name(), ".{0,20}\\.[a-z]{2}"]) {
        if let Ok(host) = Host::parse(&text) {
            prop_assert_eq!(Host::parse(host.as_str()), Ok(host));
        }
    }

    #[test]
    fn case_and_the_trailing_dot_do_not_matter(name in name()) {
        let plain = Host::parse(&name);
        prop_assert_eq!(&Host::parse(&name.to_uppercase()), &plain);
        prop_assert_eq!(&Host::parse(&format!("{name}.")), &plain);
    }

    #[test]
    fn c19_below_means_one_more_label_at_least(head in "[a-z]{1,5}(\\.[a-z]{1,5}){0,2}", suffix in "[a-z]{1,5}\\.[a-z]{2,3}") {
        let pattern = Pattern::parse(&format!("*.{suffix}")).unwrap();
        let (below, beside) = (host(&format!("{head}.{suffix}")), host(&format!("{head}{suffix}")));
        prop_assert!(pattern.matches(&below) && !pattern.matches(&beside));
        prop_assert!(!pattern.matches(&host(&suffix)));
        let longer = host(&format!("{suffix}.{head}"));
        prop_assert_eq!(pattern.matches(&longer), longer.as_str().ends_with(&format!(".{suffix}")));
    }

    #[test]
    fn every_address_is_an_address(bits: u128, v4: u32) {
        for address in [IpAddr::V6(Ipv6Addr::from(bits)), IpAddr::V4(Ipv4Addr::from(v4))] {
            prop_assert_eq!(host(&address.to_string()).address(), Some(address));
        }
    }
}
