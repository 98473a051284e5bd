//! The measurement of creation does not rot: one round has every figure, with the bare VMM's beside it.

use roost_tests::program;

#[test]
fn vm_bench_create_has_every_figure_of_product_and_control() {
    let path = std::env::temp_dir().join(format!("roost-bench-create-{}", std::process::id()));
    let mut command = program::command(env!("CARGO_BIN_EXE_roost-bench"));
    command.args(["create", "--rounds", "1", "--null", "2", "--json"]).arg(&path);
    program::run(command, b"").unwrap().success("roost-bench create").unwrap();
    let figures: Vec<serde_json::Value> = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    std::fs::remove_file(&path).unwrap();
    let found: Vec<_> =
        figures.iter().map(|figure| (figure["id"].as_str().unwrap(), figure["n"].as_u64())).collect();
    let (one, execs, null) = (Some(1), Some(5), Some(2));
    let whole = [
        ("create.cold", one),
        ("resume", one),
        ("resume.to_cold", one),
        ("create.first_exec", one),
        ("resume.first_exec", one),
        ("exec.true", execs),
        ("exec.python", execs),
        ("pause", one),
    ];
    let steps = [[("create.cold.step", one); 5], [("resume.step", one); 5]].concat();
    let expected = [&whole[..], &steps, &[("agent.wall", null), ("agent.cpu", null)]].concat();
    assert_eq!(found, expected);
    for figure in &figures {
        let id = figure["id"].as_str().unwrap();
        let is_compared =
            ["create.cold", "resume", "resume.to_cold", "agent.wall", "agent.cpu"].contains(&id);
        let control = figure["control"].as_f64();
        assert!(figure["p50"].as_f64() > Some(0.0), "{figure}");
        assert_eq!(control > Some(0.0), is_compared, "{figure}");
    }
}
