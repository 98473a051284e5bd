//! The public Python SDK, unmodified, is a client of this API.

use roost_tests::quickstart::environment;
use roost_tests::sdk::Sdk;
use roost_tests::stack::{Allowed, Stack, Wish};
use roost_tests::upstream::Upstream;

#[test]
fn vm_sdk_walks_through_the_api_with_both_clients() {
    let sdk = Sdk::ensure().unwrap();
    let upstream = Upstream::start().unwrap();
    let wish = Wish { upstream: Some(Allowed::from(&upstream)), ..Wish::default() };
    let stack = Stack::for_test_with("sdk", &wish).unwrap();
    let environment = environment::of(&stack).unwrap();
    for kind in ["sync", "async"] {
        let value = format!("value-of-{kind}-1f6d2a");
        let path = format!("/{kind}");
        let outcome = sdk.script("walk.py", &[kind, &upstream.url(&path), &value], &environment).unwrap();
        let placeholder = outcome.text().lines().last().unwrap_or_default().to_owned();

        let seen = upstream.seen();
        let seen = seen.iter().find(|seen| seen.line == format!("GET {path}")).expect("the call arrived");
        assert_eq!(seen.header("authorization"), Some(format!("Bearer {value}").as_str()));
        assert!(placeholder.starts_with("miosa-tok-"), "{placeholder}");
    }
    sdk.script("unmodified.py", &[], &[]).unwrap();
    stack.finish().unwrap();
}

#[test]
fn vm_sdk_passes_its_own_live_tests() {
    let sdk = Sdk::ensure().unwrap();
    let stack = Stack::for_test("sdk-live").unwrap();
    let outcome = sdk.live_tests(&environment::of(&stack).unwrap()).unwrap();
    assert!(outcome.text().contains("2 passed"), "{}", outcome.text());
    sdk.script("unmodified.py", &[], &[]).unwrap();
    stack.finish().unwrap();
}
