//! The `iris` command.

use std::process::ExitCode;

/// A message takes some twenty small allocations, freed by other threads than made them; glibc's allocator took a quarter of
/// the server's time with that.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    iris::cli::run()
}
