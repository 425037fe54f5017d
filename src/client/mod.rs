//! The client library.

pub mod event;
pub mod machine;
pub mod state;
