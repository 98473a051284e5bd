//! The `roost-agent` command.

fn main() -> std::process::ExitCode {
    roost_agent::cli::main()
}
