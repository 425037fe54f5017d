//! Iris.

pub mod admin;
pub mod cli;
pub mod client;
pub mod core;
pub mod net;
pub mod server;
pub mod sim;
pub mod store;
