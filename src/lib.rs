//! Iris.

pub mod core;
pub mod net;
pub mod store;
