//! Failover drills: a planned failure, measured by clients of the drill's own.
//!
//! | part | what it does |
//! |---|---|
//! | [`log`] | what the drill's clients saw, and what was done to the cluster, with times |
//! | [`measure`] | what that says: RTO, RPO, losses, what came twice or out of order, convergence, phase by phase |
//! | [`report`] | that judged against the limits of the drill, as JSON, Markdown, a terminal's text and a page |
//! | [`plan`] | the files of drills: a scenario, and the terms on which it counts as passed |
//! | [`crew`] | the clients: they send to each other, watch each other, and note what they see |
//! | [`access`] | how they get in |
//! | [`nodes`] | the nodes that can be struck: which a plan's places are, and what its faults mean for each |
//! | [`target`] | what is struck, and how nodes are asked for it |
//! | [`site`] | nodes of the drill's own, each a process |
//! | [`cluster`] | a running cluster, struck through its nodes' admin interface |
//! | [`run`] | a drill from its first client to its last message |
//! | [`soak`] | bouts of random failures, one after the other on one cluster |
//! | [`simulated`] | the same in the simulator, under virtual time |
//!
//! What is called lost, doubled or late comes from these clients alone, never from the servers' word.

pub mod access;
pub mod cluster;
pub mod crew;
pub mod log;
pub mod measure;
pub mod nodes;
pub mod plan;
pub mod report;
pub mod run;
pub mod simulated;
pub mod site;
pub mod soak;
pub mod target;
