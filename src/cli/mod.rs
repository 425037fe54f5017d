//! The command line: noun, then verb, one file for each verb.
//!
//! Data goes to stdout and talk to stderr. Exit codes: 0 done, 1 failed (the causes on stderr, outermost first), 2 wrong usage;
//! commands that ask a cluster have more ([`admin`]).
//!
//! To add a verb: write `src/cli/<noun>/<verb>.rs` with a struct that derives [`clap::Args`] and has
//! `fn run(self) -> anyhow::Result<ExitCode>`; give it `#[command(after_help = ..)]` with examples; add it to the enum of its
//! noun (or to `Command` here) and to the `match` beside that. Arguments that several verbs share are in [`args`], output in
//! [`output`]. `anyhow` stays within this module: what others call returns typed errors.

pub mod admin;
pub mod args;
pub mod bench;
pub mod certs;
pub mod client;
pub mod cluster;
pub mod config;
pub mod dev;
pub mod drill;
pub mod fault;
mod inbox;
pub mod link;
pub mod node;
pub mod output;
pub mod presence;
pub mod region;
pub mod serve;
pub mod session;
pub mod shard;
pub mod sim;
pub mod token;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Multi-region presence and messaging.
#[derive(Debug, Parser)]
#[command(name = "iris", version, arg_required_else_help = true, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  iris dev                           a cluster of three regions on this machine
  iris client send --as alice --to bob hello
  iris cluster status                is the cluster well, and if not, why?
  iris config check node.toml        is this node's configuration good?
  iris sim run --seeds 100            does everything hold in 100 simulated worlds?
  iris token --user alice            a token for alice, signed with the key of ./data";

/// What `iris` can do.
#[derive(Debug, Subcommand)]
enum Command {
    Bench(bench::Bench),
    Certs(certs::Certs),
    Client(client::Client),
    Cluster(cluster::Cluster),
    Config(config::Config),
    Dev(dev::Dev),
    Fault(fault::Fault),
    Inbox(inbox::Inbox),
    Link(link::Link),
    Node(node::Node),
    Presence(presence::Presence),
    Region(region::Region),
    Drill(drill::Drill),
    Serve(Box<serve::Serve>),
    Session(session::Session),
    Shard(shard::Shard),
    Sim(sim::Sim),
    Token(token::Token),
}

/// Runs the command that the process was started with.
pub fn run() -> ExitCode {
    // clap prints help to stdout and exits 0, or says what is wrong with the usage and exits 2.
    let done = match Cli::parse().command {
        Command::Bench(verb) => verb.run(),
        Command::Certs(noun) => noun.run(),
        Command::Client(noun) => noun.run(),
        Command::Cluster(noun) => noun.run(),
        Command::Config(noun) => noun.run(),
        Command::Dev(verb) => verb.run(),
        Command::Fault(noun) => noun.run(),
        Command::Inbox(noun) => noun.run(),
        Command::Link(noun) => noun.run(),
        Command::Node(noun) => noun.run(),
        Command::Presence(noun) => noun.run(),
        Command::Region(noun) => noun.run(),
        Command::Drill(noun) => noun.run(),
        Command::Serve(verb) => verb.run(),
        Command::Session(noun) => noun.run(),
        Command::Shard(noun) => noun.run(),
        Command::Sim(noun) => noun.run(),
        Command::Token(verb) => verb.run(),
    };
    done.unwrap_or_else(|error| output::report(&error))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn commands_are_consistent_and_each_has_examples() {
        fn check(command: &clap::Command) {
            for sub in command.get_subcommands() {
                check(sub);
            }
            let name = command.get_name();
            let examples = command
                .get_after_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            assert!(
                examples.starts_with("Examples:\n  iris"),
                "{name} has no examples"
            );
            assert!(command.get_about().is_some(), "{name} has no description");
        }
        let command = Cli::command();
        command.clone().debug_assert();
        check(&command);
    }

    /// A node is often started with an environment that was made for other commands.
    #[test]
    fn variables_that_stand_for_flags_are_no_settings_of_a_node() {
        fn collect(command: &clap::Command, found: &mut BTreeSet<String>) {
            let names = command.get_arguments().filter_map(|argument| argument.get_env());
            found.extend(names.map(|name| name.to_string_lossy().into_owned()));
            command.get_subcommands().for_each(|sub| collect(sub, found));
        }
        let mut found = BTreeSet::new();
        collect(&Cli::command(), &mut found);
        assert!(found.len() >= 3, "{found:?}");
        found.insert(crate::server::log::ENV.to_owned());
        found.retain(|name| crate::server::config::is_setting(name));
        assert!(found.is_empty(), "a node would refuse {found:?}");
    }
}
