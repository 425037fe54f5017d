//! `iris client send`

use std::io::Read as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use clap::Args;
use serde_json::json;

use super::connection::Connection;
use super::print;
use crate::cli::args;
use crate::cli::output::Format;
use crate::cli::serve::runtime;
use crate::client::{Accepted, Client, ClientConfig, ClientEvent, CloseCause, OutgoingMessage, SendFailed};
use crate::core::ids::{DeviceId, MessageId, UserId};
use crate::core::op::MAX_BODY;
use crate::core::wire::{Durability, Status};

/// Pause before this device takes its place back from another `send` of the same user.
const SUPERSEDED_PAUSE: Duration = Duration::from_millis(300);

/// Send a message, and print its id once it is accepted: it is durable then.
///
/// The user does not appear as online by this, and what arrives for the user meanwhile waits for the user's devices: this
/// command receives nothing.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  iris client send --as alice --to bob 'see you at noon'
  iris client send --as alice --to bob --region eu-west 'from the other side'
  iris client send --as alice --to bob --ttl 10m 'the door code is 4711'
  echo 'a long text' | iris client send --as alice --to bob -
  iris client send --endpoint edge.example.org:7101 --ca ca.pem --token-file alice.jwt --to bob hello")]
pub struct Send {
    #[command(flatten)]
    connection: Connection,
    /// The recipient.
    #[arg(long, value_name = "USER")]
    to: UserId,
    /// The text; `-` reads it from stdin, without its last line end.
    text: String,
    /// An id of your own (UUIDv7): sending again with the same one does not make a second message.
    #[arg(long, value_name = "UUID")]
    id: Option<MessageId>,
    /// The application's kind of content.
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    kind: u16,
    /// How long the message is worth delivering, such as 30s or 24h. After that, and a minute for clocks, who has not read it
    /// is told that it expired. Without it the message waits for good.
    #[arg(long, value_name = "TIME", value_parser = time_to_live)]
    ttl: Option<Duration>,
    /// How long to try.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = args::duration)]
    timeout: Duration,
    /// The device to send as.
    #[arg(long, value_name = "NAME", default_value = "cli-send")]
    device: DeviceId,
    /// The form of what is printed.
    #[arg(long, value_enum, default_value_t)]
    output: Format,
}

/// Zero would mean for good to a server.
fn time_to_live(text: &str) -> Result<Duration, String> {
    let ttl = args::duration(text)?;
    if ttl < Duration::from_millis(1) {
        return Err("expected at least 1ms; without --ttl a message waits for good".to_owned());
    }
    Ok(ttl)
}

impl Send {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let body = self.body()?;
        let runtime = runtime()?;
        let done = runtime.block_on(async {
            let mut config = self.connection.config(self.device.clone(), Status::Offline)?;
            config.receives = false;
            let mut message = OutgoingMessage {
                id: self.id,
                kind: self.kind,
                ttl_ms: self.ttl.map_or(0, |ttl| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX)),
                ..OutgoingMessage::new(self.to.clone(), body)
            };
            let mut last = String::from("no answer from any endpoint");
            match send(config, &mut message, &mut last, self.timeout).await? {
                Some(accepted) => Ok(accepted),
                None => {
                    let id = message.id.map_or_else(String::new, |id| format!(" --id {id}"));
                    bail!(
                        "not accepted within {:?} ({last}); it may have been: send it again with{id}, which cannot make \
                         a second message",
                        self.timeout
                    )
                }
            }
        });
        // A name that is still being looked up must not hold the end of the process.
        runtime.shutdown_background();
        let accepted = done?;
        let json = || {
            json!({
                "type": "accepted",
                "id": accepted.id.to_string(),
                "to": self.to,
                "origin": format!("{:016x}", accepted.at.origin.0),
                "seq": accepted.at.seq,
                "duplicate": accepted.duplicate,
                "durability": match accepted.durability {
                    Durability::Region => "region",
                    Durability::Geo => "geo",
                },
            })
        };
        print::line(self.output, || accepted.id.to_string(), json)?;
        Ok(ExitCode::SUCCESS)
    }

    fn body(&self) -> anyhow::Result<Bytes> {
        if self.text != "-" {
            return Ok(self.text.clone().into());
        }
        let mut body = Vec::new();
        std::io::stdin()
            .take(MAX_BODY as u64 + 1)
            .read_to_end(&mut body)
            .context("cannot read stdin")?;
        if body.len() > MAX_BODY {
            bail!("stdin has over {MAX_BODY} bytes, the most that a message may have");
        }
        if body.ends_with(b"\n") {
            body.pop();
        }
        Ok(body.into())
    }
}

/// Tries for so long; `last` says what happened last where that was not enough.
async fn send(
    config: ClientConfig,
    message: &mut OutgoingMessage,
    last: &mut String,
    timeout: Duration,
) -> anyhow::Result<Option<Accepted>> {
    let mut late = std::pin::pin!(tokio::time::sleep(timeout));
    loop {
        let client = Client::connect(config.clone())?;
        let mut handle = client
            .send_message(message.clone())
            .context("the message cannot be sent")?;
        // The id is made once, for all tries.
        message.id = message
            .id
            .or_else(|| client.unanswered().first().and_then(|(_, queued)| queued.id));
        let result = loop {
            tokio::select! {
                biased;
                result = &mut handle => break result,
                () = &mut late => {
                    if let Some(refused) = client.last_refusal() {
                        *last = format!("{last}; refused for now as {:?}: {}", refused.code, refused.detail);
                    }
                    return Ok(None);
                }
                event = client.next() => match event {
                    Some(ClientEvent::Disconnected { endpoint, reason, .. }) => {
                        *last = format!("{endpoint}: {reason}");
                        if print::is_wrong_server(&reason) {
                            bail!("{last}; was it made by another `iris dev` than this data folder?");
                        }
                    }
                    Some(ClientEvent::Connected { region, endpoint, .. }) => {
                        *last = format!("connected to {endpoint} in {region}");
                    }
                    Some(_) => {}
                    None => break handle.await,
                },
            }
        };
        match result {
            Ok(accepted) => {
                print::close(&client).await;
                return Ok(Some(accepted));
            }
            Err(SendFailed::Closed(CloseCause::Superseded)) => {
                *last = "another `iris client send` of this user took over".to_owned();
                tokio::time::sleep(SUPERSEDED_PAUSE).await;
            }
            Err(SendFailed::Closed(cause)) => return Err(print::ended(&cause)),
            Err(rejected) => {
                print::close(&client).await;
                return Err(rejected.into());
            }
        }
    }
}
