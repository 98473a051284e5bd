//! PID 1 of a guest. Anywhere else it only says what it is.

use std::process::ExitCode;

fn main() -> ExitCode {
    if std::process::id() != 1 {
        eprintln!(
            "roost-init {} is the first process of a Roost guest and does nothing elsewhere",
            env!("CARGO_PKG_VERSION")
        );
        return ExitCode::from(2);
    }
    roost_init::boot::run()
}
