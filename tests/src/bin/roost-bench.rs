//! The Rust half of `cargo xtask bench`.

fn main() -> std::process::ExitCode {
    roost_tests::bench::main()
}
