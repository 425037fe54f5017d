//! Folders that a node refuses to start with.
