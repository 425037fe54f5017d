//! The `iris` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    iris::cli::run()
}
