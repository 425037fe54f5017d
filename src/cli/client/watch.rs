//! `iris client watch`

use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use clap::Args;

use super::connection::Connection;
use super::listen::elapsed;
use super::print::{self, Printed};
use crate::cli::args;
use crate::cli::output::Format;
use crate::cli::serve::{runtime, stop_signal};
use crate::client::{Client, ClientEvent};
use crate::core::ids::{DeviceId, UserId};
use crate::core::wire::Status;

/// Print the presence of users: as it is, then each change.
///
/// The watching user does not appear as online by this, and what arrives for that user meanwhile waits for the user's
/// devices: this command receives nothing.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  iris client watch --as alice bob carol
  iris client watch --as alice --region us-east --output json bob
  iris client watch --as alice --count 1 --timeout 5s bob")]
pub struct Watch {
    #[command(flatten)]
    connection: Connection,
    /// Whom to watch.
    #[arg(required = true, value_name = "USER")]
    users: Vec<UserId>,
    /// The device to watch as.
    #[arg(long, value_name = "NAME", default_value = "cli-watch")]
    device: DeviceId,
    /// Stop after so many lines.
    #[arg(long, value_name = "NUMBER")]
    count: Option<u64>,
    /// Stop after this time; a failure where --count lines have not come by then.
    #[arg(long, value_name = "TIME", value_parser = args::duration)]
    timeout: Option<Duration>,
    /// The form of what is printed; JSON is one object a line.
    #[arg(long, value_enum, default_value_t)]
    output: Format,
}

impl Watch {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let runtime = runtime()?;
        let done = runtime.block_on(self.watch());
        runtime.shutdown_background();
        done
    }

    async fn watch(&self) -> anyhow::Result<ExitCode> {
        let mut config = self.connection.config(self.device.clone(), Status::Offline)?;
        config.receives = false;
        let stop = stop_signal(false)?;
        let client = Client::connect(config)?;
        client.watch(self.users.iter().cloned());
        let mut printed = 0;
        let end = tokio::select! {
            end = self.print(&client, &mut printed) => end,
            _ = stop => Ok(()),
            () = elapsed(self.timeout) => Ok(()),
        };
        print::close(&client).await;
        end?;
        match (self.count, self.timeout) {
            (Some(count), Some(timeout)) if printed < count => {
                bail!("{printed} changes of {count} came within {timeout:?}")
            }
            _ => Ok(ExitCode::SUCCESS),
        }
    }

    async fn print(&self, client: &Client, printed: &mut u64) -> anyhow::Result<()> {
        while self.count.is_none_or(|count| *printed < count) {
            match client.next().await {
                Some(ClientEvent::Presence(event)) => {
                    if print::presence(self.output, &event)? == Printed::Gone {
                        return Ok(());
                    }
                    *printed += 1;
                }
                Some(ClientEvent::Closed(cause)) => return Err(print::ended(&cause)),
                Some(other) => print::notice(&other),
                None => return Ok(()),
            }
        }
        Ok(())
    }
}
