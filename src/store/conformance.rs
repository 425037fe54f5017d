//! What every engine must do, whatever it keeps its rows in.
//!
//! [`cases`], and those of [`recovery`], [`retire`], [`expire`] and [`holders`], are told one by one; [`run`] runs all of them against an engine. `random` drives engines with the same
//! random operations and compares every outcome and read, and `model` is a naive reference written from the rules.
//! `snapshots` does so with two stores, of which one loses something and takes it back from the other.

mod cases;
mod expire;
mod forget;
mod holders;
pub(crate) mod kit;
pub(crate) mod model;
pub(crate) mod random;
mod recovery;
mod retire;
pub(crate) mod snapshots;

use super::engine::Engine;
use crate::core::state::StoreIdentity;

/// Makes engines of one kind.
pub(crate) trait Harness {
    /// A store in a new place, forgetting any other.
    fn create(&mut self, identity: StoreIdentity) -> Box<dyn Engine>;

    /// Ends the engine as a crash does, and opens its store again.
    fn reopen(&mut self, engine: Box<dyn Engine>, identity: StoreIdentity) -> Box<dyn Engine>;
}

/// Runs every case.
pub(crate) fn run(harness: &mut dyn Harness) {
    let more = recovery::ALL.iter().chain(retire::ALL);
    let timed = expire::ALL.iter().chain(expire::devices::ALL).chain(holders::ALL);
    for (name, case) in cases::ALL.iter().chain(more).chain(timed) {
        println!("{name}");
        case(harness);
    }
}
