//! The Rust half of `scripts/quickstart`.

fn main() -> std::process::ExitCode {
    roost_tests::quickstart::main()
}
