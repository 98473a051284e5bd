//! The measurement of egress does not rot: a short one has every figure, and the proxies were really compared.

use roost_tests::program;

#[test]
fn measure_of_egress_against_nginx_has_every_figure() {
    let directory = std::env::temp_dir().join(format!("roost-bench-egress-{}", std::process::id()));
    let mut command = program::command(env!("CARGO_BIN_EXE_roost-bench"));
    command.args(["egress", "--seconds", "1", "--rounds", "1", "--json"]).arg(&directory);
    let outcome = program::run(command, b"").unwrap().success("roost-bench egress").unwrap();
    let figures: Vec<serde_json::Value> =
        serde_json::from_slice(&std::fs::read(&directory).unwrap()).unwrap();
    std::fs::remove_file(&directory).unwrap();
    let ids: Vec<_> = figures.iter().map(|figure| figure["id"].as_str().unwrap()).collect();
    let kinds = ["small", "many", "secret", "large", "resumed", "handshake"];
    let expected: Vec<_> =
        kinds.iter().flat_map(|kind| [format!("egress.{kind}"), format!("egress.{kind}.cpu")]).collect();
    assert_eq!(ids, expected);
    for figure in &figures {
        assert!(figure["p50"].as_f64() > Some(0.0) && figure["control"].as_f64() > Some(0.0), "{figure}");
    }
    assert!(outcome.text().contains("load average"), "{}", outcome.text());
}
