use tokio::{sync::mpsc, time::Instant};

use super::*;

const A: &str = "127.0.0.1:1001";
const B: &str = "127.0.0.1:1002";
const PATIENCE: Duration = Duration::from_secs(20);

/// A packet as it left: where to, its bytes, when.
type Left = (SocketAddr, Vec<u8>, Instant);

/// Notes what is sent; what is received is what a test put there.
#[derive(Debug)]
struct Wire {
    left: mpsc::UnboundedSender<Left>,
    came: Mutex<Vec<(SocketAddr, Vec<u8>, usize)>>,
}

#[derive(Debug)]
struct Ready;

impl UdpPoller for Ready {
    fn poll_writable(self: Pin<&mut Self>, _cx: &mut Context) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl AsyncUdpSocket for Wire {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Ready)
    }

    fn try_send(&self, transmit: &Transmit) -> io::Result<()> {
        let size = transmit.segment_size.unwrap_or(transmit.contents.len());
        for packet in transmit.contents.chunks(size) {
            let left = (transmit.destination, packet.to_vec(), Instant::now());
            self.left.send(left).unwrap();
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        _cx: &mut Context,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let came = std::mem::take(&mut *self.came.lock().unwrap());
        for (i, (addr, bytes, stride)) in came.iter().enumerate() {
            bufs[i][..bytes.len()].copy_from_slice(bytes);
            meta[i].addr = *addr;
            meta[i].len = bytes.len();
            meta[i].stride = *stride;
        }
        Poll::Ready(Ok(came.len()))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(addr(A))
    }
}

struct Rig {
    gate: Gate,
    wire: Arc<Wire>,
    socket: Arc<dyn AsyncUdpSocket>,
    left: mpsc::UnboundedReceiver<Left>,
}

impl Rig {
    fn new() -> Self {
        let gate = Gate::seeded([7; 32]);
        let (sender, left) = mpsc::unbounded_channel();
        let wire = Arc::new(Wire {
            left: sender,
            came: Mutex::default(),
        });
        let socket = gate.wrap()(wire.clone());
        Self {
            gate,
            wire,
            socket,
            left,
        }
    }

    fn set(&self, remote: Option<&str>, rule: Rule) {
        let mut rules = Rules::default();
        match remote {
            Some(remote) => rules.add_for(addr(remote), rule),
            None => rules.add(rule),
        }
        self.gate.set(rules);
    }

    fn send(&self, to: &str, contents: &[u8], segment_size: Option<usize>) {
        let transmit = Transmit {
            destination: addr(to),
            ecn: None,
            contents,
            segment_size,
            src_ip: None,
        };
        self.socket.try_send(&transmit).unwrap();
    }

    /// What left without waiting.
    fn at_once(&mut self) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| self.left.try_recv().ok())
            .map(|(_, bytes, _)| bytes)
            .collect()
    }

    async fn next(&mut self) -> (Vec<u8>, Instant) {
        let next = tokio::time::timeout(PATIENCE, self.left.recv()).await;
        let (_, bytes, at) = next.expect("it leaves").unwrap();
        (bytes, at)
    }

    /// What arrives of packets of `stride` bytes that came in one read.
    fn receive(&self, from: &str, bytes: &[u8], stride: usize) -> Vec<u8> {
        let came = (addr(from), bytes.to_vec(), stride);
        self.wire.came.lock().unwrap().push(came);
        let mut buf = vec![0; 64 * 1024];
        let mut meta = [RecvMeta::default()];
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let mut bufs = [IoSliceMut::new(&mut buf)];
        let Poll::Ready(Ok(1)) = self.socket.poll_recv(&mut cx, &mut bufs, &mut meta) else {
            panic!("nothing came");
        };
        buf[..meta[0].len].to_vec()
    }
}

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

#[tokio::test]
async fn a_cut_may_be_one_way_and_is_of_one_remote() {
    let mut rig = Rig::new();
    let passes = |rig: &mut Rig, remote: &str| {
        rig.send(remote, b"x", None);
        let out = !rig.at_once().is_empty();
        (out, !rig.receive(remote, b"y", 1).is_empty())
    };
    assert_eq!(passes(&mut rig, A), (true, true));
    rig.set(Some(A), Rule::CUT);
    assert_eq!(passes(&mut rig, A), (false, false));
    assert_eq!(passes(&mut rig, B), (true, true));
    let out = Rule {
        cut_in: false,
        ..Rule::CUT
    };
    rig.set(Some(A), out);
    assert_eq!(passes(&mut rig, A), (false, true));
    let inwards = Rule {
        cut_out: false,
        ..Rule::CUT
    };
    rig.set(None, inwards);
    assert_eq!(passes(&mut rig, B), (true, false));
    rig.gate.cut_all();
    assert_eq!(passes(&mut rig, B), (false, false));
    rig.gate.heal();
    assert_eq!(passes(&mut rig, A), (true, true));
    // A socket for both families sees the same remote under another name.
    rig.set(Some(A), Rule::CUT);
    assert_eq!(passes(&mut rig, "[::ffff:127.0.0.1]:1001"), (false, false));
}

#[tokio::test]
async fn so_many_of_a_hundred_are_lost_each_by_itself() {
    let mut rig = Rig::new();
    let rule = Rule {
        loss_out: 30,
        loss_in: 10,
        ..Rule::default()
    };
    rig.set(Some(A), rule);
    // In batches of one size, the last packet shorter: what is left is whole and in order.
    let mut left = 0;
    for _ in 0..100 {
        let batch: Vec<u8> = (0..99).map(|i| i / 10).collect();
        rig.send(A, &batch, Some(10));
        let packets = rig.at_once();
        assert!(packets.iter().all(|packet| {
            let whole = if packet[0] == 9 { 9 } else { 10 };
            packet.len() == whole && packet.iter().all(|byte| *byte == packet[0])
        }));
        assert!(packets.is_sorted_by_key(|packet| packet[0]));
        left += packets.len();
    }
    assert!((600..800).contains(&left), "{left} of 1000 with 30 % lost");
    let arrived: usize = (0..100).map(|_| rig.receive(A, &[1; 100], 10).len() / 10).sum();
    assert!((850..950).contains(&arrived), "{arrived} of 1000 with 10 % lost");
    rig.send(B, &[0; 1000], Some(10));
    assert_eq!(rig.at_once().len(), 100);
    rig.set(
        None,
        Rule {
            loss_out: 100,
            ..Rule::default()
        },
    );
    rig.send(B, b"x", None);
    assert!(rig.at_once().is_empty());
}

#[tokio::test]
async fn what_is_delayed_leaves_when_it_is_due_and_in_order() {
    let mut rig = Rig::new();
    let late = |ms, jitter| Rule {
        delay: Duration::from_millis(ms),
        jitter: Duration::from_millis(jitter),
        ..Rule::default()
    };
    rig.set(Some(A), late(50, 0));
    let begun = Instant::now();
    for i in 0..10 {
        rig.send(A, &[i], None);
    }
    assert!(rig.at_once().is_empty());
    rig.send(B, b"b", None);
    assert_eq!(rig.at_once(), [b"b"]);
    for i in 0..10 {
        let (bytes, at) = rig.next().await;
        assert_eq!(bytes, [i]);
        assert!(at - begun >= Duration::from_millis(50));
    }
    // One that is due sooner is not kept by one that waits long; what waits outlives its rule.
    rig.set(Some(A), late(200, 0));
    rig.send(A, b"later", None);
    rig.set(Some(A), late(1, 0));
    rig.send(A, b"sooner", None);
    rig.gate.heal();
    assert_eq!(rig.next().await.0, b"sooner");
    assert_eq!(rig.next().await.0, b"later");
    // Jitter adds to the delay, and never takes from it.
    rig.set(None, late(5, 20));
    let begun = Instant::now();
    for _ in 0..50 {
        rig.send(A, b"x", None);
    }
    for _ in 0..50 {
        let (_, at) = rig.next().await;
        assert!(at - begun >= Duration::from_millis(5));
    }
}

#[tokio::test]
async fn what_waits_is_bounded_in_packets_and_in_bytes() {
    let hour = Rule {
        delay: Duration::from_secs(3600),
        ..Rule::default()
    };
    for (packet, expected) in [
        (vec![0; 1], late::MAX_PACKETS),
        (vec![0; 1 << 20], late::MAX_BYTES >> 20),
    ] {
        let rig = Rig::new();
        let late = Late::new(rig.wire.clone());
        let transmit = Transmit {
            destination: addr(A),
            ecn: None,
            contents: &packet,
            segment_size: None,
            src_ip: None,
        };
        for _ in 0..expected {
            late.push(&transmit, hour.delay);
        }
        assert_eq!(late.waits(), expected);
        late.push(&transmit, hour.delay);
        assert_eq!(late.waits(), expected);
    }
}

#[test]
fn rules_add_up() {
    let one = Rule {
        cut_in: true,
        loss_out: 10,
        loss_in: 40,
        delay: Duration::from_millis(20),
        ..Rule::default()
    };
    let other = Rule {
        cut_out: true,
        loss_out: 30,
        loss_in: 5,
        delay: Duration::from_millis(30),
        jitter: Duration::from_millis(3),
        ..Rule::default()
    };
    let both = Rule {
        cut_in: true,
        cut_out: true,
        loss_out: 30,
        loss_in: 40,
        delay: Duration::from_millis(50),
        jitter: Duration::from_millis(3),
    };
    assert_eq!((one.and(other), other.and(one)), (both, both));
    let mut rules = Rules::default();
    rules.add(one);
    rules.add_for(addr(A), other);
    assert_eq!((rules.of(addr(A)), rules.of(addr(B))), (both, one));
}
