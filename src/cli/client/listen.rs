//! `iris client listen`

use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use clap::{Args, ValueEnum};

use super::connection::Connection;
use super::print::{self, Printed};
use crate::cli::args;
use crate::cli::output::Format;
use crate::cli::serve::{runtime, stop_signal};
use crate::client::{Client, ClientEvent};
use crate::core::ids::{Coord, DeviceId};
use crate::core::wire::Status;

/// Print messages as they arrive, and acknowledge them once they are printed.
///
/// The device is online meanwhile, and goes on where it stopped when it listens again, in whichever region: its state is
/// kept in the data folder.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  iris client listen --as bob --device phone
  iris client listen --as bob --device phone --count 1 --timeout 10s
  iris client listen --as bob --device laptop --region ap-south --output json")]
pub struct Listen {
    #[command(flatten)]
    connection: Connection,
    /// The device to receive on; each gets every message.
    #[arg(long, value_name = "NAME", default_value = "cli")]
    device: DeviceId,
    /// Stop after so many messages.
    #[arg(long, value_name = "NUMBER")]
    count: Option<u64>,
    /// Stop after this time; a failure where --count messages have not come by then.
    #[arg(long, value_name = "TIME", value_parser = args::duration)]
    timeout: Option<Duration>,
    /// The status to show.
    #[arg(long, value_enum, default_value_t)]
    status: Shown,
    /// The status text to show.
    #[arg(long, value_name = "TEXT", default_value = "")]
    status_text: String,
    /// The form of what is printed; JSON is one object a line.
    #[arg(long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum Shown {
    #[default]
    Online,
    Away,
    Dnd,
}

impl Listen {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let runtime = runtime()?;
        let done = runtime.block_on(self.listen());
        runtime.shutdown_background();
        done
    }

    async fn listen(&self) -> anyhow::Result<ExitCode> {
        let status = match self.status {
            Shown::Online => Status::Online,
            Shown::Away => Status::Away,
            Shown::Dnd => Status::Dnd,
        };
        let mut config = self.connection.config(self.device.clone(), status)?;
        config.status_text.clone_from(&self.status_text);
        config.state_file = Some(self.connection.state_file(&config));
        let stop = stop_signal(false)?;
        let client = Client::connect(config)?;
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
                bail!("{printed} messages of {count} came within {timeout:?}")
            }
            _ => Ok(ExitCode::SUCCESS),
        }
    }

    /// Prints until the count is reached, the reader goes, or the client ends by itself.
    async fn print(&self, client: &Client, printed: &mut u64) -> anyhow::Result<()> {
        while self.count.is_none_or(|count| *printed < count) {
            let Some(event) = client.next().await else {
                return Ok(());
            };
            let (went, at) = match &event {
                ClientEvent::Message(message) => (print::message(self.output, message)?, message.at),
                ClientEvent::Hole(hole) => {
                    let (origin, seq) = (hole.origin, hole.to);
                    (print::hole(self.output, hole)?, Coord { origin, seq })
                }
                ClientEvent::Closed(cause) => return Err(print::ended(cause)),
                other => {
                    print::notice(other);
                    continue;
                }
            };
            if went == Printed::Gone {
                return Ok(());
            }
            client.consumed(at);
            *printed += u64::from(matches!(event, ClientEvent::Message(_)));
        }
        Ok(())
    }
}

/// Waits for a time, or for ever.
pub(super) async fn elapsed(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}
