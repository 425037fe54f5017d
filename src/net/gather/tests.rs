use std::{
    collections::BTreeMap,
    future::poll_fn,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    time::Duration,
};

use proptest::prelude::*;
use quinn::udp::EcnCodepoint;
use tokio::time::timeout;

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);
const MOST: usize = 64;

/// A call: address, bytes, length of a segment.
type Call = (SocketAddr, Vec<u8>, Option<usize>);

/// Notes the calls; takes none while it is shut.
#[derive(Debug)]
struct Kernel {
    calls: Mutex<Vec<Call>>,
    shut: AtomicBool,
    segments: AtomicUsize,
}

impl Kernel {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            calls: Mutex::default(),
            shut: AtomicBool::new(false),
            segments: AtomicUsize::new(MOST),
        })
    }

    fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap().clone()
    }

    fn bytes(&self) -> Vec<u8> {
        self.calls().into_iter().flat_map(|call| call.1).collect()
    }

    async fn has(&self, calls: usize) -> Vec<Call> {
        let enough = async {
            while self.calls.lock().unwrap().len() < calls {
                yield_now().await;
            }
        };
        timeout(PATIENCE, enough).await.expect("the calls are made");
        // One too many would come now.
        others_run().await;
        self.calls()
    }
}

#[derive(Debug)]
struct KernelPoller(Arc<Kernel>);

impl UdpPoller for KernelPoller {
    fn poll_writable(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.0.shut.load(SeqCst) {
            return Poll::Ready(Ok(()));
        }
        // Asked again at the next turn: the test's runtime has nothing else to do.
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl AsyncUdpSocket for Kernel {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(KernelPoller(self))
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        if self.shut.load(SeqCst) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let call = (
            transmit.destination,
            transmit.contents.to_vec(),
            transmit.segment_size,
        );
        self.calls.lock().unwrap().push(call);
        Ok(())
    }

    fn poll_recv(
        &self,
        _cx: &mut Context<'_>,
        _bufs: &mut [IoSliceMut<'_>],
        _meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        Poll::Pending
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(addr(0))
    }

    fn max_transmit_segments(&self) -> usize {
        self.segments.load(SeqCst)
    }
}

/// All tasks that are ready have run, and those that they woke.
async fn others_run() {
    for _ in 0..10 {
        yield_now().await;
    }
}

fn addr(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// A packet with a short header of a connection.
fn packet(connection: u8, number: u8, len: usize) -> Vec<u8> {
    let mut bytes = vec![0x40];
    bytes.extend([connection; 8]);
    bytes.push(number);
    bytes.resize(len, 0);
    bytes
}

fn to(port: u16, contents: &[u8]) -> Transmit<'_> {
    Transmit {
        destination: addr(port),
        ecn: None,
        contents,
        segment_size: None,
        src_ip: None,
    }
}

fn send(socket: &Arc<dyn AsyncUdpSocket>, port: u16, contents: &[u8]) {
    socket.try_send(&to(port, contents)).unwrap();
}

#[tokio::test]
async fn packets_of_one_length_to_one_address_leave_in_one_call() {
    let kernel = Kernel::new();
    let socket = gather(kernel.clone());
    for connection in 0..3 {
        send(&socket, 1, &packet(connection, 0, 200));
        send(&socket, 2, &packet(connection, 0, 200));
        send(&socket, 1, &packet(10 + connection, 0, 201));
    }
    assert!(
        kernel.calls().is_empty(),
        "nothing leaves before others had their turn"
    );
    let joined = |first: u8, len| {
        (first..first + 3)
            .flat_map(|c| packet(c, 0, len))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        kernel.has(3).await,
        [
            (addr(1), joined(0, 200), Some(200)),
            (addr(2), joined(0, 200), Some(200)),
            (addr(1), joined(10, 201), Some(201)),
        ]
    );
}

#[tokio::test]
async fn a_packet_alone_is_sent_as_it_is() {
    let kernel = Kernel::new();
    let socket = gather(kernel.clone());
    send(&socket, 1, &packet(0, 0, 200));
    assert_eq!(kernel.has(1).await, [(addr(1), packet(0, 0, 200), None)]);
}

#[tokio::test]
async fn no_call_has_more_segments_or_bytes_than_the_kernel_takes() {
    let kernel = Kernel::new();
    let socket = gather(kernel.clone());
    for connection in 0..=MOST as u8 {
        send(&socket, 1, &packet(connection, 0, 200));
    }
    let calls = kernel.has(2).await;
    assert_eq!((calls[0].1.len(), calls[1].1.len()), (MOST * 200, 200));
    let len = MAX_GROUP / 50;
    for connection in 0..=50 {
        send(&socket, 1, &packet(connection, 0, len));
    }
    let calls = kernel.has(4).await;
    assert_eq!((calls[2].1.len(), calls[3].1.len()), (50 * len, len));
}

#[tokio::test]
async fn nothing_passes_a_handshake_or_a_batch_of_one_connection() {
    let kernel = Kernel::new();
    let socket = gather(kernel.clone());
    let mut long = packet(0, 0, 200);
    long[0] = 0xc0;
    let batch = [packet(1, 0, 300), packet(1, 1, 200)].concat();
    send(&socket, 1, &packet(2, 0, 200));
    send(&socket, 1, &long);
    send(&socket, 1, &packet(2, 1, 200));
    let segments = Transmit {
        segment_size: Some(300),
        ..to(1, &batch)
    };
    socket.try_send(&segments).unwrap();
    send(&socket, 1, &packet(2, 2, 200));
    let calls = kernel.has(5).await;
    let sent: Vec<_> = calls
        .iter()
        .map(|(_, bytes, segment)| (bytes.clone(), *segment))
        .collect();
    assert_eq!(
        sent,
        [
            (packet(2, 0, 200), None),
            (long, None),
            (packet(2, 1, 200), None),
            (batch, Some(300)),
            (packet(2, 2, 200), None),
        ]
    );
}

#[tokio::test]
async fn connections_wait_where_the_kernel_takes_nothing_and_go_on_when_it_does() {
    let kernel = Kernel::new();
    let socket = gather(kernel.clone());
    kernel.shut.store(true, SeqCst);
    let first = packet(0, 0, 1200);
    send(&socket, 1, &first);
    others_run().await;
    assert!(kernel.calls().is_empty(), "the kernel takes nothing");
    let mut sent = first;
    for number in 1.. {
        let next = packet(0, number as u8, 1200);
        match socket.try_send(&to(1, &next)) {
            Ok(()) => sent.extend(next),
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                break;
            }
        }
        assert!(sent.len() < MAX_WAITING + 3 * 1200, "what waits has a limit");
    }
    assert!(sent.len() >= MAX_WAITING);
    let mut poller = socket.clone().create_io_poller();
    let writable = poll_fn(move |cx| poller.as_mut().poll_writable(cx));
    let writable = tokio::spawn(writable);
    others_run().await;
    assert!(
        !writable.is_finished(),
        "a connection waits while there is no room"
    );
    kernel.shut.store(false, SeqCst);
    timeout(PATIENCE, writable)
        .await
        .expect("woken")
        .unwrap()
        .unwrap();
    let last = packet(0, 0, 1200);
    send(&socket, 1, &last);
    sent.extend(last);
    let all = async {
        while kernel.bytes().len() < sent.len() {
            yield_now().await;
        }
    };
    timeout(PATIENCE, all).await.expect("all leave");
    others_run().await;
    assert!(kernel.bytes() == sent, "each once, in their order");
}

#[tokio::test]
async fn short_packets_have_a_limit_of_their_own() {
    let kernel = Kernel::new();
    let socket = gather(kernel.clone());
    kernel.shut.store(true, SeqCst);
    let contents = packet(0, 0, 30);
    let taken = (0..2 * MAX_PACKETS).take_while(|_| socket.try_send(&to(1, &contents)).is_ok());
    assert_eq!(taken.count(), MAX_PACKETS);
}

#[tokio::test]
async fn what_a_task_sends_that_is_ready_leaves_with_what_waits() {
    let kernel = Kernel::new();
    let socket = gather(kernel.clone());
    others_run().await;
    let ready = Arc::new(Notify::new());
    let second = tokio::spawn({
        let (socket, ready) = (socket.clone(), ready.clone());
        async move {
            ready.notified().await;
            send(&socket, 1, &packet(1, 0, 200));
        }
    });
    others_run().await;
    send(&socket, 1, &packet(0, 0, 200));
    // The task that sends is told of the first packet before the second task is woken.
    ready.notify_one();
    second.await.unwrap();
    let both = [packet(0, 0, 200), packet(1, 0, 200)].concat();
    assert_eq!(kernel.has(1).await, [(addr(1), both, Some(200))]);
}

#[tokio::test]
async fn where_the_kernel_refuses_to_cut_each_packet_leaves_by_itself() {
    let kernel = Kernel::new();
    let socket = gather(kernel.clone());
    let sent = [packet(0, 0, 200), packet(1, 0, 200)];
    send(&socket, 1, &sent[0]);
    send(&socket, 1, &sent[1]);
    kernel.segments.store(1, SeqCst);
    let third = packet(0, 1, 200);
    send(&socket, 1, &third);
    let [first, second] = sent;
    let alone = |bytes| (addr(1), bytes, None);
    assert_eq!(kernel.has(3).await, [first, second, third].map(alone));
}

#[tokio::test]
async fn where_the_kernel_joins_none_each_leaves_at_once() {
    let kernel = Kernel::new();
    kernel.segments.store(1, SeqCst);
    let socket = gather(kernel.clone());
    send(&socket, 1, &packet(0, 0, 200));
    send(&socket, 1, &packet(1, 0, 200));
    assert_eq!(kernel.calls().len(), 2);
}

#[tokio::test]
async fn what_waits_when_the_socket_is_dropped_still_leaves_and_its_task_ends() {
    let kernel = Kernel::new();
    let socket = gather(kernel.clone());
    send(&socket, 1, &packet(0, 0, 200));
    drop(socket);
    kernel.has(1).await;
    let ends = async {
        while Arc::strong_count(&kernel) > 1 {
            yield_now().await;
        }
    };
    timeout(PATIENCE, ends).await.expect("the task ends");
}

proptest! {
    /// Each packet leaves once, to where it was sent and marked as it was, and behind those that its connection sent before;
    /// every call has segments of one length.
    #[test]
    fn connections_keep_their_order(
        sent in prop::collection::vec((0u8..5, 0u16..2, 10usize..13, 0u8..10, any::<(bool, bool)>()), 0..200),
        most in 1usize..6,
    ) {
        const LONG: u8 = 0;
        const BATCH: u8 = 1;
        let mut waiting = Waiting::default();
        for (number, (connection, port, len, kind, marked)) in sent.iter().enumerate() {
            let mut bytes = packet(*connection, number as u8, *len);
            if *kind == LONG {
                bytes[0] = 0xc0;
            }
            let segment_size = (*kind == BATCH).then_some(*len);
            if *kind == BATCH {
                bytes.extend(packet(*connection, number as u8, *len));
            }
            let ecn = marked.0.then_some(EcnCodepoint::Ect0);
            let src_ip = marked.1.then_some(addr(0).ip());
            waiting.push(&Transmit { segment_size, ecn, src_ip, ..to(*port, &bytes) }, most);
        }
        let mut left = BTreeMap::new();
        let mut last = BTreeMap::new();
        for Group { packets, count } in &waiting.groups {
            prop_assert!(*count <= most);
            let len = packets.segment_size.unwrap_or(packets.contents.len());
            prop_assert_eq!(packets.contents.len() % len, 0);
            for bytes in packets.contents.chunks(len) {
                let (port, connection, number) = (packets.destination.port(), bytes[1], bytes[9]);
                let (of, to, of_len, kind, marked) = sent[usize::from(number)];
                prop_assert_eq!((of, to, of_len), (connection, port, len));
                prop_assert_eq!((packets.ecn.is_some(), packets.src_ip.is_some()), marked);
                let times: &mut u8 = left.entry(number).or_default();
                *times += 1;
                prop_assert!(*times <= 1 + u8::from(kind == BATCH), "sent twice");
                let before = last.insert((port, connection), number);
                prop_assert!(before.is_none_or(|before| before <= number), "{} after {:?}", number, before);
            }
        }
        prop_assert_eq!(left.len(), sent.len());
        prop_assert_eq!(waiting.packets, sent.len());
    }
}
