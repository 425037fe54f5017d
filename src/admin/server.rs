//! The admin interface of a node: its Unix socket, and the connections of operators and nodes over QUIC.
//!
//! Whoever can open the socket (mode 0600) may do everything; so may an operator's certificate. A node's certificate may
//! look at the node alone, which is what answering for the cluster takes. Changes are logged with who asked for them.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixListener;
use tokio::sync::{Mutex, Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::data::{Changed, Reply};
use super::request::{Call, Change};
use super::socket::{SocketError, listen};
use super::wire::{
    AdminError, Answer, ErrorCode, MAX_CALL, decode_call, encode_answer, read_frame, write_frame,
};
use super::{cluster, evacuation, faults, holders, local};
use crate::core::ids::NodeName;
use crate::net::peer::admin::{AdminConnection, Caller};
use crate::server::inspect::{Drain, Inspector};
use crate::server::regions::Role;

/// Connections at a time, over the socket and over QUIC each: operators, their scripts, and nodes that ask.
const MAX_CONNECTIONS: usize = 64;
/// A call is answered within this: asking all nodes takes two seconds at most.
const CALL_DEADLINE: Duration = Duration::from_secs(10);
/// A connection that asks nothing for so long is closed.
const IDLE: Duration = Duration::from_secs(60);
/// An answer that is not taken in this time ends its connection.
const WRITE_DEADLINE: Duration = Duration::from_secs(10);
/// After a failed accept (out of descriptors): at once again would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The running interface. Dropping it ends it; answers under way are cut.
pub struct AdminServer {
    socket: PathBuf,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

impl AdminServer {
    /// Listens at the node's socket, and takes connections over QUIC.
    ///
    /// # Errors
    /// [`SocketError`].
    pub async fn start(node: Inspector) -> Result<Self, SocketError> {
        let socket = node.socket().clone();
        let listener = Arc::new(listen(&socket).await?);
        let (stop, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        let supervisor = node.supervisor().clone();
        let run = {
            let (node, stopped) = (node.clone(), stopped.clone());
            move || accept_unix(listener.clone(), node.clone(), stopped.clone())
        };
        tasks.spawn(supervisor.clone().keep("admin", "admin socket".to_owned(), run));
        if node.roles().contains(&Role::Core) {
            let (node, stopped) = (node.clone(), stopped.clone());
            let run = move || evacuation::listen(node.clone(), stopped.clone());
            tasks.spawn(
                supervisor
                    .clone()
                    .keep("evacuations", "evacuations elsewhere".to_owned(), run),
            );
        }
        if let Some(connections) = node.pool().take_admin() {
            let connections = Arc::new(Mutex::new(connections));
            let run = move || accept_quic(connections.clone(), node.clone(), stopped.clone());
            tasks.spawn(supervisor.keep("admin", "admin connections".to_owned(), run));
        }
        Ok(Self { socket, stop, tasks })
    }

    /// Ends it and removes the socket.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        while self.tasks.join_next().await.is_some() {}
        // Another process may have taken its place only after this one stopped answering.
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// How someone came in.
#[derive(Debug, Clone)]
enum Who {
    /// By the socket.
    Socket,
    /// With a certificate of the operator role.
    Operator(String),
    /// A node.
    Node,
}

async fn accept_unix(listener: Arc<UnixListener>, node: Inspector, mut stopped: watch::Receiver<bool>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    while !*stopped.borrow() {
        // Others wait in the system's queue.
        let place = tokio::select! {
            _ = stopped.changed() => break,
            place = places.clone().acquire_owned() => place.expect("it is never closed"),
        };
        let accepted = tokio::select! {
            _ = stopped.changed() => break,
            accepted = listener.accept() => accepted,
        };
        while connections.try_join_next().is_some() {}
        match accepted {
            Ok((mut stream, _)) => {
                let node = node.clone();
                connections.spawn(async move {
                    let (mut recv, mut send) = stream.split();
                    while serve(&mut send, &mut recv, &node, &Who::Socket).await {}
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "admin socket: accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn accept_quic(
    connections: Arc<Mutex<mpsc::Receiver<AdminConnection>>>,
    node: Inspector,
    mut stopped: watch::Receiver<bool>,
) {
    // Held by the run that goes on; a panic frees it for the next.
    let mut connections = connections.lock().await;
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut served = JoinSet::new();
    loop {
        let AdminConnection { connection, caller } = tokio::select! {
            _ = stopped.changed() => return,
            next = connections.recv() => match next {
                Some(next) => next,
                None => return,
            },
        };
        while served.try_join_next().is_some() {}
        let Ok(place) = places.clone().try_acquire_owned() else {
            connection.close(crate::net::CloseCode::OVERLOADED.into(), b"too many operators");
            continue;
        };
        let who = match caller {
            Caller::Operator(certificate) => Who::Operator(certificate),
            Caller::Node => Who::Node,
        };
        let node = node.clone();
        served.spawn(async move {
            loop {
                let stream = timeout(IDLE, connection.accept_bi()).await;
                let Ok(Ok((mut send, mut recv))) = stream else {
                    break;
                };
                if !serve(&mut send, &mut recv, &node, &who).await || send.finish().is_err() {
                    break;
                }
            }
            connection.close(crate::net::CloseCode::NORMAL.into(), b"");
            drop(place);
        });
    }
}

/// Reads a call and answers it; says whether the connection is good for another.
async fn serve<W, R>(send: &mut W, recv: &mut R, node: &Inspector, who: &Who) -> bool
where
    W: AsyncWrite + Unpin,
    R: AsyncRead + Unpin,
{
    let call = match timeout(IDLE, read_frame(recv, MAX_CALL)).await {
        Ok(Ok(Some(call))) => call,
        Ok(Ok(None)) | Err(_) => return false,
        Ok(Err(error)) => {
            tracing::debug!(%error, "an operator sent no frame");
            let error = AdminError::new(ErrorCode::Malformed, error.to_string());
            let _ = timeout(WRITE_DEADLINE, write_frame(send, &encode_answer(Err(error)))).await;
            return false;
        }
    };
    let answer = match decode_call(&call) {
        Ok(call) => timeout(CALL_DEADLINE, answer(node, call, who))
            .await
            .unwrap_or_else(|_| {
                let detail = format!("the node did not have the answer within {CALL_DEADLINE:?}");
                Err(AdminError::new(ErrorCode::Late, detail))
            }),
        Err(error) => Err(error),
    };
    let answer = encode_answer(answer);
    matches!(
        timeout(WRITE_DEADLINE, write_frame(send, &answer)).await,
        Ok(Ok(()))
    )
}

async fn answer(node: &Inspector, call: Call, who: &Who) -> Answer {
    may(&call, who)?;
    match call {
        Call::Cluster(request) => cluster::answer(node, request).await,
        Call::Node(part) => Ok(Reply::Part(Box::new(local::answer(node, part).await?))),
        Call::Change(change) => {
            let by = match who {
                Who::Socket => "the socket".to_owned(),
                Who::Operator(certificate) => format!("the operator with certificate {certificate}"),
                Who::Node => "a node".to_owned(),
            };
            tracing::warn!(?change, %by, "a change is asked for");
            self::change(node, change).await
        }
    }
}

/// Who may ask what.
fn may(call: &Call, who: &Who) -> Result<(), AdminError> {
    match (who, call) {
        (Who::Socket | Who::Operator(_), _) | (Who::Node, Call::Node(_)) => Ok(()),
        (Who::Node, Call::Cluster(_) | Call::Change(_)) => Err(AdminError::new(
            ErrorCode::Forbidden,
            "a node's certificate may look at this node alone: use one of the operator role",
        )),
    }
}

async fn change(node: &Inspector, change: Change) -> Answer {
    match change {
        Change::NodeDrain { node: name } => {
            is_meant(node, &name)?;
            let text = match node.drain() {
                Drain::No => format!("node {name} drains, and stops then"),
                Drain::Asked | Drain::Runs => format!("node {name} drains already"),
            };
            node.ask_to_drain();
            Ok(Reply::Changed(Changed { text }))
        }
        Change::RegionAdd { region } => holders::add(node, region).await,
        Change::RegionRemove { region, force } => holders::remove(node, region, force).await,
        Change::RegionEvacuate {
            region,
            rate,
            force,
            lasts_ms,
        } => {
            let lasts = lasts_ms.map(Duration::from_millis);
            evacuation::evacuate(node, region, rate, force, lasts).await
        }
        Change::RegionRestore { region, rate } => evacuation::restore(node, region, rate).await,
        Change::FaultInject {
            node: name,
            fault,
            lasts_ms,
        } => {
            is_meant(node, &name)?;
            faults::inject(node, fault, lasts_ms).await
        }
        Change::FaultClear { node: name, id } => {
            is_meant(node, &name)?;
            faults::clear(node, id)
        }
    }
}

/// Whether a change names this node: no node changes another.
fn is_meant(node: &Inspector, name: &NodeName) -> Result<(), AdminError> {
    if *name == node.key().node {
        return Ok(());
    }
    let peer = node.nodes().into_iter().find(|(key, _)| key.node == *name);
    let (code, detail) = match peer {
        Some((key, addr)) => (
            ErrorCode::WrongNode,
            format!(
                "this is {}, and no node changes another: ask {key} itself, by its socket or with --connect {addr}",
                node.key()
            ),
        ),
        None => (ErrorCode::NotFound, format!("there is no node {name}")),
    };
    Err(AdminError::new(code, detail))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::request::{Part, Request};

    #[test]
    fn a_node_may_look_at_this_node_and_nothing_else() {
        let drain = Call::Change(Change::NodeDrain {
            node: "a".parse().unwrap(),
        });
        let inject = Call::Change(Change::FaultInject {
            node: "a".parse().unwrap(),
            fault: crate::server::faults::Fault::StoreFail,
            lasts_ms: None,
        });
        let (look, all) = (Call::Node(Part::Node), Call::Cluster(Request::ClusterStatus));
        for call in [&drain, &inject, &look, &all] {
            assert!(may(call, &Who::Socket).is_ok());
            assert!(may(call, &Who::Operator("x".to_owned())).is_ok());
        }
        assert!(may(&look, &Who::Node).is_ok());
        for call in [&drain, &inject, &all] {
            assert_eq!(may(call, &Who::Node).unwrap_err().code, ErrorCode::Forbidden);
        }
    }
}
