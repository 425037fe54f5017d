//! The admin HTTP port: `/livez`, `/readyz`, `/metrics`. Loopback by default, no authentication, nothing that changes state.
//!
//! `/livez` answers as long as the process runs. `/readyz` is 200 when every component is ready, else 503 with the reasons; both
//! name the node, its incarnation and its process, so that whoever asks knows who answered.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use super::metrics::{self, Metrics};
use crate::net::supervise::Supervisor;

/// Connections at a time: some scrapers and probes. Further ones wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 64;

/// Bytes of a request's head. Probes and scrapers send a few hundred.
const MAX_HEAD_BYTES: usize = 16 * 1024;

/// Headers of a request.
const MAX_HEADERS: usize = 64;

/// For a request's head to arrive: a client that sends nothing does not keep its place.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// For all of a connection. Each carries one request.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(15);

/// For connections to end after a stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// After a failed accept (out of descriptors): at once again would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Which components of the node are ready. A node without any is not ready: it has just begun.
#[derive(Debug, Default)]
pub struct Health {
    /// Whose it is, as `region/node`, and its incarnation.
    node: String,
    generation: u64,
    /// By component: ready, or why not.
    components: Mutex<BTreeMap<String, Result<(), String>>>,
}

impl Health {
    /// No component yet, not ready; of a node by its name and incarnation.
    pub fn new(node: String, generation: u64) -> Self {
        Self {
            node,
            generation,
            components: Mutex::default(),
        }
    }

    /// The component is ready (`Ok`), or is not for this reason.
    pub fn set_ready(&self, component: &str, ready: Result<(), String>) {
        self.lock().insert(component.to_owned(), ready);
    }

    /// Whether all components are ready.
    pub fn is_ready(&self) -> bool {
        let components = self.lock();
        !components.is_empty() && components.values().all(Result::is_ok)
    }

    /// The components that are not ready, and why.
    pub fn reasons(&self) -> BTreeMap<String, String> {
        let components = self.lock();
        if components.is_empty() {
            return BTreeMap::from([("node".to_owned(), "starting".to_owned())]);
        }
        let not_ready = |(name, ready): (&String, &Result<(), String>)| {
            Some((name.clone(), ready.as_ref().err()?.clone()))
        };
        components.iter().filter_map(not_ready).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Result<(), String>>> {
        // Every change is one insertion, so what a panicking holder leaves is whole.
        self.components.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The listening server. Dropping it stops it at once, [`AdminHttp::stop`] lets answers under way finish.
#[derive(Debug)]
pub struct AdminHttp {
    addr: SocketAddr,
    stop: watch::Sender<bool>,
    task: Option<JoinHandle<()>>,
}

impl AdminHttp {
    /// Listens on `addr` (port 0 lets the system choose) and serves. An error means that the address cannot be had.
    pub async fn bind(
        addr: SocketAddr,
        health: Arc<Health>,
        metrics: Arc<Metrics>,
        supervisor: Supervisor,
    ) -> io::Result<Self> {
        let listener = Arc::new(TcpListener::bind(addr).await?);
        let addr = listener.local_addr()?;
        let (stop, stopped) = watch::channel(false);
        let served = Arc::new(Served { health, metrics });
        let run = move || accept(listener.clone(), served.clone(), stopped.clone());
        let task = tokio::spawn(supervisor.keep("admin_http", "admin http".to_owned(), run));
        Ok(Self {
            addr,
            stop,
            task: Some(task),
        })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Accepts nothing more, lets answers under way finish for up to 2 s.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        if let Some(task) = self.task.take() {
            // It ends by itself within its own limit; a panic in it has been reported and there is nothing left to stop.
            let _ = task.await;
        }
    }
}

impl Drop for AdminHttp {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

struct Served {
    health: Arc<Health>,
    metrics: Arc<Metrics>,
}

async fn accept(listener: Arc<TcpListener>, served: Arc<Served>, mut stopped: watch::Receiver<bool>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    while !*stopped.borrow() {
        let place = tokio::select! {
            _ = stopped.changed() => break,
            place = Arc::clone(&places).acquire_owned() => place.expect("the semaphore is never closed"),
        };
        let accepted = tokio::select! {
            _ = stopped.changed() => break,
            accepted = listener.accept() => accepted,
        };
        while connections.try_join_next().is_some() {}
        match accepted {
            Ok((stream, _)) => {
                let (served, stopped) = (Arc::clone(&served), stopped.clone());
                connections.spawn(async move {
                    connection(stream, served, stopped).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "admin http: accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    let all = async { while connections.join_next().await.is_some() {} };
    // What is left is dropped, and so aborted, with the set.
    let _ = timeout(STOP_TIMEOUT, all).await;
}

async fn connection(stream: TcpStream, served: Arc<Served>, mut stopped: watch::Receiver<bool>) {
    let service = service_fn(move |request| {
        let response = respond(&served, &request);
        async move { Ok::<_, Infallible>(response) }
    });
    let mut connection = std::pin::pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(MAX_HEAD_BYTES)
            .max_headers(MAX_HEADERS)
            .keep_alive(false)
            .serve_connection(TokioIo::new(stream), service)
    );
    let served = async {
        tokio::select! {
            result = connection.as_mut() => return result,
            _ = stopped.changed() => connection.as_mut().graceful_shutdown(),
        }
        connection.await
    };
    match timeout(CONNECTION_TIMEOUT, served).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "admin http: connection ended"),
        Err(_) => tracing::debug!("admin http: connection took too long"),
    }
}

fn respond(served: &Served, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let path = request.uri().path();
    let known = matches!(path, "/livez" | "/readyz" | "/metrics");
    if known && request.method() != Method::GET && request.method() != Method::HEAD {
        let mut response = json(
            StatusCode::METHOD_NOT_ALLOWED,
            serde_json::json!({"error": "expected GET or HEAD"}),
        );
        response
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match path {
        "/livez" => json(StatusCode::OK, serde_json::json!({"live": true})),
        "/readyz" => {
            let reasons = served.health.reasons();
            let status = if reasons.is_empty() {
                StatusCode::OK
            } else {
                StatusCode::SERVICE_UNAVAILABLE
            };
            json(
                status,
                serde_json::json!({
                    "ready": reasons.is_empty(),
                    "reasons": reasons,
                    "node": served.health.node,
                    "generation": served.health.generation,
                    "pid": std::process::id(),
                }),
            )
        }
        "/metrics" => reply(StatusCode::OK, metrics::CONTENT_TYPE, served.metrics.encode()),
        _ => json(
            StatusCode::NOT_FOUND,
            serde_json::json!({"error": "expected /livez, /readyz or /metrics"}),
        ),
    }
}

fn json(status: StatusCode, body: serde_json::Value) -> Response<Full<Bytes>> {
    reply(status, "application/json", format!("{body}\n"))
}

fn reply(status: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
        .headers_mut()
        .insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    async fn server() -> (AdminHttp, Arc<Health>, Arc<Metrics>) {
        let (health, metrics) = (
            Arc::new(Health::new("r/n".to_owned(), 7)),
            Arc::new(Metrics::new("r", "n")),
        );
        let addr = SocketAddr::from(([127, 0, 0, 1], 0));
        let supervisor = Supervisor::default();
        let server = AdminHttp::bind(addr, Arc::clone(&health), Arc::clone(&metrics), supervisor)
            .await
            .expect("bind");
        (server, health, metrics)
    }

    async fn send(addr: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(addr).await.expect("connect");
        stream.write_all(request.as_bytes()).await.expect("write");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("read");
        answer
    }

    async fn request(addr: SocketAddr, method: &str, path: &str) -> String {
        send(addr, &format!("{method} {path} HTTP/1.1\r\nhost: iris\r\n\r\n")).await
    }

    #[tokio::test]
    async fn readiness_follows_the_components_and_names_reasons() {
        let (server, health, _) = server().await;
        let addr = server.addr();
        assert!(request(addr, "GET", "/livez").await.starts_with("HTTP/1.1 200"));
        let answer = request(addr, "GET", "/readyz").await;
        assert!(
            answer.starts_with("HTTP/1.1 503") && answer.contains("{\"node\":\"starting\"}"),
            "{answer}"
        );
        assert!(!health.is_ready());
        health.set_ready("store", Ok(()));
        health.set_ready("gossip", Err("no seed answers".to_owned()));
        let answer = request(addr, "GET", "/readyz").await;
        assert!(
            answer.starts_with("HTTP/1.1 503") && answer.contains("{\"gossip\":\"no seed answers\"}"),
            "{answer}"
        );
        health.set_ready("gossip", Ok(()));
        assert!(health.is_ready());
        let answer = request(addr, "GET", "/readyz").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        let me = format!("\"generation\":7,\"node\":\"r/n\",\"pid\":{}", std::process::id());
        assert!(answer.contains(&me), "{answer}");
        server.stop().await;
        assert!(TcpStream::connect(addr).await.is_err(), "it still listens");
    }

    #[tokio::test]
    async fn only_what_exists_is_served() {
        let (server, _, metrics) = server().await;
        let addr = server.addr();
        metrics.commits.inc_by(41);
        let answer = request(addr, "GET", "/metrics").await;
        assert!(
            answer.contains("openmetrics-text") && answer.contains("iris_store_commits_total 41\n"),
            "{answer}"
        );
        assert!(
            request(addr, "GET", "/metrics/x")
                .await
                .starts_with("HTTP/1.1 404")
        );
        assert!(request(addr, "GET", "/").await.starts_with("HTTP/1.1 404"));
        assert!(request(addr, "POST", "/readyz").await.starts_with("HTTP/1.1 405"));
        assert!(request(addr, "HEAD", "/livez").await.starts_with("HTTP/1.1 200"));
    }

    #[tokio::test]
    async fn oversized_and_broken_heads_end_only_their_connection() {
        let (server, _, _) = server().await;
        let addr = server.addr();
        let long = "x".repeat(MAX_HEAD_BYTES + 1);
        let mut stream = TcpStream::connect(addr).await.expect("connect");
        // The server may close before all is written: only that it does not answer 200 counts.
        let _ = stream
            .write_all(format!("GET /livez HTTP/1.1\r\nlong: {long}\r\n\r\n").as_bytes())
            .await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert!(!answer.starts_with(b"HTTP/1.1 200"));
        assert!(!send(addr, "\u{1}\u{2}\r\n\r\n").await.starts_with("HTTP/1.1 200"));
        assert!(request(addr, "GET", "/livez").await.starts_with("HTTP/1.1 200"));
    }

    #[tokio::test]
    async fn silent_connections_do_not_delay_a_stop_beyond_its_limit() {
        let (server, _, _) = server().await;
        let _silent = TcpStream::connect(server.addr()).await.expect("connect");
        timeout(STOP_TIMEOUT + Duration::from_secs(3), server.stop())
            .await
            .expect("stopped");
    }
}
