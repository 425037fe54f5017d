//! `iris node drain`

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Args;

use crate::admin::data::{PartReply, Reply};
use crate::admin::request::{Call, Change, Part};
use crate::cli::admin::{Target, refused};
use crate::cli::output::say;
use crate::cli::{args, output, serve};
use crate::core::ids::NodeName;

/// Between two looks at a node that drains.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Drain a node and stop it, as SIGTERM does: its clients go elsewhere at a limited rate, what is in flight is finished.
///
/// The node is asked itself, at its socket or with --connect: no node stops another. Its process ends with exit code 0, or, in
/// `iris dev` without --processes, the node alone ends. Whoever supervises the process decides whether it is started again
/// (`iris dev --processes` does).
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  iris node drain us-east-edge-1
  iris node drain us-east-edge-1 --no-wait
  iris node drain edge-1 --connect 10.0.0.5:7110 --cert operator.pem --key operator.key --ca ca.pem")]
pub struct Drain {
    /// The node's name.
    #[arg(value_name = "NODE")]
    name: NodeName,
    /// Do not wait until it has stopped.
    #[arg(long)]
    no_wait: bool,
    /// How long to wait at most; the drain goes on.
    #[arg(long, value_name = "TIME", default_value = "90s", value_parser = args::duration)]
    wait: Duration,
    #[command(flatten)]
    target: Target,
}

impl Drain {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        serve::run_to_end(async {
            let mut client = self.target.connect_to(Some(self.name.as_str())).await?;
            // A node that stands still would carry out later what it is asked for now, when nobody expects it any more.
            let answer = client.call(&Call::Node(Part::Node)).await;
            answer.with_context(|| {
                format!("node {} was not asked to drain: it does not answer", self.name)
            })??;
            let change = Change::NodeDrain {
                node: self.name.clone(),
            };
            match client.call(&Call::Change(change)).await? {
                Ok(Reply::Changed(changed)) => say!("{}", changed.text),
                Ok(_) => bail!("the node answered another question"),
                Err(error) => return refused(&error),
            }
            if self.no_wait {
                return Ok(ExitCode::SUCCESS);
            }
            let (started, mut told) = (Instant::now(), None);
            // It answers until it has stopped.
            while let Ok(Ok(Reply::Part(reply))) = client.call(&Call::Node(Part::Node)).await {
                let PartReply::Node(report, _) = *reply else {
                    bail!("the node answered another question");
                };
                if told != Some(report.sessions) {
                    say!("sessions left: {}", report.sessions);
                    told = Some(report.sessions);
                }
                if started.elapsed() > self.wait {
                    return Err(anyhow::anyhow!("sessions left: {}", report.sessions)).with_context(|| {
                        format!(
                            "node {} has not stopped within {:?}; it drains on",
                            self.name, self.wait
                        )
                    });
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
            let took = started.elapsed().as_secs_f64();
            output::print(&format!("node {} has stopped after {took:.1} s\n", self.name))?;
            Ok(ExitCode::SUCCESS)
        })
    }
}
