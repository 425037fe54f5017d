//! `iris fault`: break something on purpose, for a time, and see what follows.

mod clear;
mod inject;
mod list;
mod wake;

use std::process::ExitCode;

use anyhow::bail;
use clap::{Args, Subcommand};

use crate::admin::client::AdminClient;
use crate::admin::data::{FaultRow, Reply};
use crate::admin::request::{Call, Change};
use crate::admin::wire::AdminError;
use crate::cli::admin::{self, PARTIAL, span};
use crate::cli::output;
use crate::core::ids::NodeKey;

pub use wake::ARGS as WAKE_ARGS;

/// Inject faults into running nodes, for drills: each ends by itself. Only where `faults.allowed` of the node is true.
#[derive(Debug, Args)]
#[command(
    arg_required_else_help = true,
    after_help = "\
Examples:
  iris fault inject --node us-east-core-1 cut --region eu-west --for 30s
  iris fault list
  iris fault clear --all"
)]
pub struct Fault {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    List(list::List),
    Inject(inject::Inject),
    Clear(clear::Clear),
    #[command(hide = true)]
    Wake(wake::Wake),
}

impl Fault {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        match self.verb {
            Verb::List(verb) => verb.run(),
            Verb::Inject(verb) => verb.run(),
            Verb::Clear(verb) => verb.run(),
            Verb::Wake(verb) => verb.run(),
        }
    }
}

/// A node and a connection to it, or why there is none.
type Reached = (NodeKey, anyhow::Result<AdminClient>);

/// What came of asking several nodes.
#[derive(Default)]
struct Asked {
    faults: Vec<FaultRow>,
    done: usize,
    refused: Vec<AdminError>,
    failed: usize,
}

impl Asked {
    /// Asks each node itself; what does not work is told and passed over.
    async fn ask(reached: Vec<Reached>, change: impl Fn(&NodeKey) -> Change) -> anyhow::Result<Self> {
        let mut asked = Self::default();
        for (node, client) in reached {
            let answer = match client {
                Ok(mut client) => client
                    .call(&Call::Change(change(&node)))
                    .await
                    .map_err(Into::into),
                Err(error) => Err(error),
            };
            match answer {
                Ok(Ok(reply)) => {
                    asked.done += 1;
                    match reply {
                        Reply::Injected(row) => asked.faults.push(*row),
                        Reply::Faults(list) => asked.faults.extend(list.faults),
                        _ => bail!("node {node} answered another question"),
                    }
                }
                Ok(Err(error)) => asked.refused.push(error),
                Err(error) => {
                    asked.failed += 1;
                    output::report(&error.context(format!("node {node} was not asked")));
                }
            }
        }
        Ok(asked)
    }

    /// The exit code: of the first refusal where nothing was done.
    fn code(&self) -> anyhow::Result<ExitCode> {
        let mut code = ExitCode::SUCCESS;
        for error in self.refused.iter().rev() {
            code = admin::refused(error)?;
        }
        Ok(match (self.done, self.failed, self.refused.len()) {
            (_, 0, 0) => ExitCode::SUCCESS,
            (0, _, 1..) => code,
            (0, ..) => ExitCode::FAILURE,
            _ => ExitCode::from(PARTIAL),
        })
    }
}

/// Faults as a table.
fn table(rows: &[FaultRow]) -> String {
    let row = |row: &FaultRow| {
        vec![
            format!("{}/{}", row.node.node, row.id),
            row.node.region.to_string(),
            row.fault.to_string(),
            row.left_ms.map_or_else(|| "with the node".to_owned(), span),
        ]
    };
    let rows: Vec<Vec<String>> = rows.iter().map(row).collect();
    output::table(&["FAULT", "REGION", "WHAT", "ENDS IN"], &rows)
}
