//! What a log says.
