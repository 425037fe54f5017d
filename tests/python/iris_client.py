"""A client of `iris/1` on another QUIC stack (aioquic) and another MessagePack (msgpack).

Written from docs/protocol.md alone, to show that the page is enough; section names in comments are that page's. `Client`
is one device of one user, `Memory` is what it must not lose between runs. `tests/other_client.rs` drives it, by `drive.py`.
"""

import asyncio
import hashlib
import os
import random
import ssl
import struct
import time
from contextlib import suppress
from dataclasses import dataclass, field

import msgpack
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import ConnectionTerminated, StreamDataReceived

# Frames from a client.
HELLO, SEND, ACK, SET_STATUS, WATCH, UNWATCH, PING, BYE, PROBE_REPLY = range(1, 10)
# Frames from a server.
WELCOME, ACCEPTED, REJECTED, DELIVER, HOLE, PRESENCE, GO_AWAY, PONG, ERROR, PROBE, AFTER = KNOWN = range(65, 76)

OFFLINE, AWAY, DO_NOT_DISTURB, ONLINE = range(4)

# Capabilities.
STANDS_AWAY, MOVES_IN_ORDER = 2, 4

# Codes that a client does something about.
UNAUTHORIZED, VERSION, TOO_MANY_DEVICES, SUPERSEDED, RESTORED = 40, 42, 43, 60, 65
FINAL = 20  # from here on a code is final

RETIRED = 2**64 - 1
WATCH_BATCH = 256

# A client's states.
CONNECT_WITHIN, WELCOME_WITHIN = 3.0, 12.0
SILENCE, PONG_WITHIN = 3.0, 2.5
ANSWER_WITHIN, LEAVE_WITHIN = 30.0, 2.0
SHORT_SESSION, PAUSE, PAUSE_MAX = 5.0, 0.25, 30.0


def frame(kind, control=None, header=b"", body=b""):
    packed = msgpack.packb(control)
    rest = bytes([1, kind]) + header + struct.pack(">I", len(packed)) + packed + body
    return struct.pack(">I", len(rest)) + rest


# The bytes of the fixed header, without the operation's 14 in DELIVER.
HEADERS = {ACCEPTED: ">16sQQQBB", REJECTED: ">16sQ", DELIVER: ">QQBBQI", PONG: ">QQ", PROBE: ">Q"}


def parse(kind, payload):
    """The header's fields, the control part and the body."""
    header = HEADERS.get(kind, ">")
    at = struct.calcsize(header)
    (length,) = struct.unpack_from(">I", payload, at)
    control = payload[at + 4 : at + 4 + length]
    return struct.unpack_from(header, payload), msgpack.unpackb(control), payload[at + 4 + length :]


class Connection(QuicConnectionProtocol):
    """One connection and its one stream: frames out, frames in."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.frames = asyncio.Queue()  # (kind, payload), and None behind the last one
        self.ended = None
        self.said = time.monotonic()
        self._buffer = bytearray()
        self._stream = None

    def send(self, *frames):
        if self._stream is None:
            self._stream = self._quic.get_next_available_stream_id()
        self._quic.send_stream_data(self._stream, b"".join(frames))
        self.said = time.monotonic()
        self.transmit()

    def quic_event_received(self, event):
        if isinstance(event, StreamDataReceived):
            self._buffer += event.data
            while len(self._buffer) >= 4:
                (length,) = struct.unpack_from(">I", self._buffer)
                if len(self._buffer) < 4 + length:
                    break
                version, kind = self._buffer[4], self._buffer[5]
                if version != 1:
                    self.close(2, reason_phrase=f"frame version {version}")
                    return
                self.frames.put_nowait((kind, bytes(self._buffer[6 : 4 + length])))
                del self._buffer[: 4 + length]
        elif isinstance(event, ConnectionTerminated):
            self.ended = (event.error_code, event.reason_phrase)
            self.frames.put_nowait(None)

    def transmit(self):
        if not self._transport.is_closing():
            super().transmit()

    def end(self):
        self.close()
        self._transport.close()

    def cut(self):
        """As if the machine vanished: nobody is told."""
        self._transport.close()
        self.frames.put_nowait(None)

    def mute(self):
        """As if the way there was cut: what comes is heard, and nothing is sent."""
        self.transmit = lambda: None

    def deafen(self):
        """As if the way back was cut: what is sent arrives, and nothing comes."""
        self.datagram_received = lambda data, addr: None


async def connect(endpoint, ca, server_name):
    host, port = endpoint.rsplit(":", 1)
    host = host.strip("[]")
    configuration = QuicConfiguration(
        is_client=True,
        alpn_protocols=["iris/1"],
        cafile=ca,
        server_name=server_name or host,
        verify_mode=ssl.CERT_REQUIRED,
        idle_timeout=30,
    )
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_datagram_endpoint(
        lambda: Connection(QuicConnection(configuration=configuration)), remote_addr=(host, int(port))
    )
    connection.connect(connection._transport.get_extra_info("peername"))
    try:
        await asyncio.wait_for(connection.wait_connected(), CONNECT_WITHIN)
    except BaseException:
        connection._transport.close()
        raise
    return connection


@dataclass
class Message:
    """One that is sent and not accepted yet."""

    to: str
    kind: int
    body: bytes
    id: bytes = None  # made once, with the server's clock
    flying: float = None  # since when, in this session


@dataclass
class Memory:
    """What a client remembers."""

    path: str = None
    number: int = field(default_factory=lambda: random.getrandbits(64) or 1)
    epoch: int = 0  # for the next HELLO
    cursor: dict = field(default_factory=dict)
    after: dict = field(default_factory=dict)
    consumed: list = field(default_factory=list)  # of (sender, id, content, origin, sequence)
    pending: list = field(default_factory=list)

    @classmethod
    def load(cls, path):
        if not path or not os.path.exists(path):
            return cls(path)
        with open(path, "rb") as file:
            number, epoch, cursor, after, consumed, pending = msgpack.unpackb(file.read())
        pending = [Message(to, kind, body, id) for to, kind, body, id in pending]
        return cls(path, number, epoch, dict(cursor), dict(after), [tuple(one) for one in consumed], pending)

    def save(self):
        if not self.path:
            return
        pending = [(one.to, one.kind, one.body, one.id) for one in self.pending]
        fields = [self.number, self.epoch, list(self.cursor.items()), list(self.after.items()), self.consumed, pending]
        with open(self.path + ".new", "wb") as file:
            file.write(msgpack.packb(fields))
        os.replace(self.path + ".new", self.path)


class Client:
    """Stays connected while `run` does: until it is cancelled, or a server says that it is no use.

    `tell` is called with each event, a dictionary; a message is the application's until it calls `consume`.
    """

    def __init__(self, token, device, endpoints, tell, *, ca, server_name=None, prefers=None, memory=None):
        self.token, self.device, self.tell = token, device, tell
        self.ca, self.server_name = ca, server_name
        self.configured = dict(endpoints)  # by region
        self.endpoints = dict(endpoints)
        self.prefers = prefers or next(iter(self.endpoints))
        self.memory = memory or Memory()
        self.status = (ONLINE, "")
        self.watched = []
        self.connection = None
        self.region = None
        self._live = False
        self._leaving = None
        self._covered, self._said = {}, None  # as the last HELLO said: the cursor, the status
        self._clock = None  # the server's milliseconds and ours at one moment
        self._limits = (0, 0, 0, 0)
        self._sequence = 0
        self._flying = {}  # by session sequence
        self._refused = {}  # by recipient: the first message that was refused, and when it may be sent again
        self._held = {}  # by origin: sequences that the application has, in order
        self._done = {}  # by origin: consumed, and not in the cursor yet
        self._given = {}  # by origin: delivered in this session and not acknowledged
        self._seen = {}  # what the application has or had: (sender, id, content) to coordinates
        for *what, origin, sequence in self.memory.consumed:
            self._seen.setdefault(tuple(what), []).append((origin, sequence))

    # What an application calls.

    def send(self, to, body, kind=1):
        self.memory.pending.append(Message(to, kind, body))
        self.memory.save()
        self._pump()

    def consume(self, origin, sequence):
        """The application has handled this message."""
        for what, places in list(self._seen.items()):
            if (origin, sequence) in places:
                for place in places:
                    self._consumed(what, *place)
        self._acknowledge()

    def watch(self, *users):
        self.watched += users
        if self._live:
            self._watch(users)

    def set_status(self, status, text=""):
        self.status = (status, text)
        if self._live:
            self.connection.send(frame(SET_STATUS, [status, text]))

    async def run(self):
        """Waiting, Connecting, Greeting, Live, and again. To cancel it is to close the client."""
        queue, fails, told = self._order(self.prefers), 0, 0
        while True:
            endpoint, began = queue.pop(0), time.monotonic()
            end = await self._session(endpoint)
            self.tell({"event": "disconnected", "endpoint": endpoint, "why": end.why, "final": end.final})
            if end.final:
                return
            slow = False
            if end.welcomed:
                told = 0
                queue = self._order(self.region, endpoint, once_more=end.why == "silent")
                slow = time.monotonic() - began < SHORT_SESSION
                fails = fails if slow else 0
            if end.regions:
                self._learn(end.regions)
                queue, told = self._order(next(iter(end.regions)), endpoint), told + 1
                slow = told > 1
            if not queue:
                queue, slow = self._order(self.region or self.prefers), True
            if slow:
                pause = min(PAUSE * 2**fails, PAUSE_MAX)
                fails += 1
                await asyncio.sleep(random.uniform(pause / 2, pause))
            else:
                await asyncio.sleep(random.uniform(0, 0.1))

    def _learn(self, regions):
        """What a server tells, and behind it what it may not know."""
        self.endpoints = {region: list(endpoints) for region, endpoints in regions.items()}
        for region, endpoints in self.configured.items():
            known = self.endpoints.setdefault(region, [])
            known += [endpoint for endpoint in endpoints if endpoint not in known]

    def _order(self, first, failed=None, once_more=False):
        """All endpoints in the order to try them: a region's in random order, the failed one at their end."""
        own, others = [], []
        for region, endpoints in self.endpoints.items():
            shuffled = random.sample(endpoints, len(endpoints))
            (own if region == first else others).extend(sorted(shuffled, key=lambda one: one == failed))
        # A dead connection: the whole region may be gone, so the rest of it comes last.
        tries = 1 if once_more else len(own)
        return own[:tries] + others + own[tries:]

    async def _session(self, endpoint):
        try:
            self.connection = await connect(endpoint, self.ca, self.server_name)
        except (OSError, asyncio.TimeoutError) as error:
            return End(f"cannot connect: {error!r}")
        try:
            self._hello(endpoint)
            end = await self._greet()
            return end or await self._serve()
        except asyncio.CancelledError:
            if self._live:
                await self._leave("closed")
            raise
        finally:
            self._live = False
            self.connection.end()
            for message in self.memory.pending:
                message.flying = None
            self._flying.clear()
            self._refused.clear()
            self._given.clear()

    def _hello(self, endpoint):
        memory, (status, text) = self.memory, self.status
        away = endpoint not in self.endpoints.get(self.prefers, [])
        capabilities = MOVES_IN_ORDER | (STANDS_AWAY if away else 0)
        hello = [self.token, self.device, capabilities, list(memory.cursor.items()), memory.epoch, status, text]
        hello += ["iris-python/1", memory.number]
        if memory.after:
            hello.append(list(memory.after.items()))
        self._covered, self._said = dict(memory.cursor), self.status
        # The next one says more, whatever becomes of this one.
        memory.epoch += 1
        memory.save()
        self.connection.send(frame(HELLO, hello))

    async def _greet(self):
        """Until WELCOME: nothing to return. Or how it ended."""
        deadline = time.monotonic() + WELCOME_WITHIN
        while True:
            try:
                got = await asyncio.wait_for(self.connection.frames.get(), deadline - time.monotonic())
            except asyncio.TimeoutError:
                return End("no welcome")
            if got is None:
                return End(self._lost())
            kind, payload = got
            if kind not in KNOWN:
                continue
            header, control, _ = parse(kind, payload)
            if kind == WELCOME:
                return self._welcome(*control)
            if kind == PROBE:
                self.connection.send(frame(PROBE_REPLY, header=struct.pack(">Q", *header)))
            elif kind == GO_AWAY:
                return End("go away", regions=dict(control[1]))
            elif kind == ERROR:
                return await self._error(*control)
            else:
                return End(f"frame {kind} before WELCOME")

    def _welcome(self, session, epoch, server_ms, region, node, limits, regions, stable):
        self.region = region
        self._limits = limits
        self._tick(server_ms)
        self._learn(dict(regions))
        self.memory.epoch, self.memory.after = max(epoch, self.memory.epoch), {}
        self._forget(dict(stable))
        self.memory.save()
        self._sequence = 0
        self._live, self._leaving = True, None
        self.tell({"event": "welcome", "region": region, "node": node, "session": session})
        if self.status != self._said:
            self.set_status(*self.status)
        self._watch(self.watched)
        self._pump()

    async def _serve(self):
        heard, asked = time.monotonic(), None
        while True:
            # Silence of the server says that it is gone, silence of the client that this one is.
            ping_at = min(heard + SILENCE, self.connection.said + self._limits[3] / 3)
            until = self._leaving.by if self._leaving else asked + PONG_WITHIN if asked else ping_at
            try:
                got = await asyncio.wait_for(self.connection.frames.get(), max(0, until - time.monotonic()))
            except asyncio.TimeoutError:
                if self._leaving:
                    return await self._leave("go away")
                if asked:
                    return End("silent", welcomed=True)
                asked = time.monotonic()
                self.connection.send(frame(PING, header=struct.pack(">Q", random.getrandbits(64))))
                continue
            if got is None:
                return End(self._lost(), welcomed=True)
            heard = time.monotonic()
            kind, payload = got
            if kind not in KNOWN:
                continue
            header, control, body = parse(kind, payload)
            if kind == ERROR:
                return await self._error(*control, welcomed=True)
            asked = None if kind == PONG else asked
            self._frame(kind, header, control, body)
            if self._leaving and not self._flying:
                return await self._leave("go away")
            oldest = min((message.flying for message in self._flying.values()), default=time.monotonic())
            if time.monotonic() - oldest > ANSWER_WITHIN:
                return End("a message without an answer", welcomed=True)

    def _frame(self, kind, header, control, body):
        if kind == ACCEPTED:
            id, sequence, origin, at, duplicate, durability = header
            message = self._answered(id, sequence)
            self._taken(message)
            told = {"event": "accepted", "id": id.hex(), "origin": origin, "sequence": at}
            self.tell({**told, "duplicate": bool(duplicate), "durability": durability, "body": text(message.body)})
            self._pump()
        elif kind == REJECTED:
            (id, sequence), (code, detail, server_ms) = header, control
            if server_ms:
                self._tick(server_ms)
            self._rejected(self._answered(id, sequence), code, detail)
        elif kind == DELIVER:
            self._deliver(header[0], header[1], control, body)
        elif kind == HOLE:
            origin, first, last, reason, count = control
            self._given.setdefault(origin, []).append(last)
            if last > self.memory.cursor.get(origin, 0):
                told = {"event": "hole", "origin": origin, "from": first, "to": last}
                self.tell({**told, "reason": reason, "count": count})
                self._done.setdefault(origin, []).append(last)
            self._acknowledge()
        elif kind == PRESENCE:
            user, status, status_text, since, region, unreachable, devices = control
            told = {"event": "presence", "user": user, "status": status, "text": status_text, "since": since}
            self.tell({**told, "region": region, "unreachable_since": unreachable, "devices": devices})
        elif kind == GO_AWAY:
            code, regions = control
            if code != RESTORED or (regions and regions[0][0] == self.prefers):
                self._leaving = Leaving(time.monotonic() + LEAVE_WITHIN, dict(regions))
        elif kind == PONG:
            self._tick(header[1])
        elif kind == PROBE:
            self.connection.send(frame(PROBE_REPLY, header=struct.pack(">Q", *header)))
        elif kind == AFTER:
            self.memory.after = dict(control)
            self.memory.save()
            self.tell({"event": "after", "after": self.memory.after})

    async def _leave(self, why):
        self._acknowledge()
        self.connection.send(frame(BYE))
        # The server closes: closing first might overtake what was sent.
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._closed(), 1)
        return End(why, welcomed=True, regions=self._leaving and self._leaving.regions)

    async def _error(self, code, detail, welcomed=False):
        # The connection closes behind it; its close code is worth a word.
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._closed(), 1)
        told = {"event": "error", "code": code, "detail": detail}
        self.tell({**told, "close_code": self.connection.ended and self.connection.ended[0]})
        final = code in (UNAUTHORIZED, VERSION, TOO_MANY_DEVICES, SUPERSEDED)
        return End(f"error {code}", welcomed=welcomed, final=final)

    async def _closed(self):
        while await self.connection.frames.get() is not None:
            pass

    def _lost(self):
        return f"closed by the server: {self.connection.ended}" if self.connection.ended else "lost"

    def _tick(self, server_ms):
        self._clock = (server_ms, time.monotonic())

    def _watch(self, users):
        for at in range(0, len(users), WATCH_BATCH):
            self.connection.send(frame(WATCH, list(users[at : at + WATCH_BATCH])))

    # Sending.

    def _pump(self):
        """Sends what waits, in order, as far as the limits and refusals allow."""
        if not self._live or self._leaving:
            return
        frames, now = [], time.monotonic()
        for message in self.memory.pending:
            if len(self._flying) >= self._limits[1]:
                break
            if message.flying:
                continue
            refused = self._refused.get(message.to)
            # The refused one alone, once all that flew behind it are answered.
            if refused and (message is not refused.first or now < refused.again or self._flies(message.to)):
                continue
            message.id = message.id or self._uuid7()
            message.flying = now
            self._sequence += 1
            self._flying[self._sequence] = message
            header = message.id + struct.pack(">Q", self._sequence)
            frames.append(frame(SEND, [message.to, message.kind, 0, b""], header, message.body))
        if frames:
            # An id that was sent is never made anew.
            self.memory.save()
            self.connection.send(*frames)

    def _flies(self, to):
        return any(message.to == to for message in self._flying.values())

    def _answered(self, id, sequence):
        message = self._flying.pop(sequence)
        assert message.id == id, "an answer names another message"
        return message

    def _taken(self, message):
        self.memory.pending.remove(message)
        self.memory.save()
        refused = self._refused.get(message.to)
        if refused and refused.first is message:
            del self._refused[message.to]

    def _rejected(self, message, code, detail):
        message.flying = None
        self.tell({"event": "rejected", "id": message.id.hex(), "code": code, "detail": detail})
        if code >= FINAL:
            self._taken(message)
        else:
            refused = self._refused.get(message.to)
            times = refused.times + (refused.first is message) if refused else 0
            earlier = not refused or self._place(message) < self._place(refused.first)
            first = message if earlier else refused.first
            pause = min(0.1 * 2**times, 5)
            self._refused[message.to] = Refused(first, time.monotonic() + pause, times)
            asyncio.get_running_loop().call_later(pause, self._pump)
        self._pump()

    def _place(self, message):
        return self.memory.pending.index(message)

    def _uuid7(self):
        server_ms, at = self._clock
        ms = server_ms + int((time.monotonic() - at) * 1000)
        number = ms << 80 | 7 << 76 | random.getrandbits(12) << 64 | 2 << 62 | random.getrandbits(62)
        return number.to_bytes(16, "big")

    # Receiving.

    def _deliver(self, origin, sequence, envelope, body):
        to, sender, device, epoch, session, number, id, kind, expires, trace = envelope
        self._given.setdefault(origin, []).append(sequence)
        what = (sender, id, hashlib.sha256(struct.pack(">H", kind) + body).digest())
        place = (origin, sequence)
        covered = sequence <= self.memory.cursor.get(origin, 0)
        known = [] if covered else self._seen.setdefault(what, [])
        again = bool(known)
        if not covered:
            # A copy goes with the first: the application has that one, or had it.
            is_done = any(not self._holds(*one) for one in known)
            if place not in known:
                known.append(place)
                self._held.setdefault(origin, []).append(sequence)
            if is_done:
                self._consumed(what, *place)
        self._acknowledge()
        told = {"event": "dropped" if covered or again else "message", "from": sender, "device": device}
        told = {**told, "id": id.hex(), "kind": kind, "body": text(body)}
        self.tell({**told, "origin": origin, "sequence": sequence})

    def _holds(self, origin, sequence):
        return sequence in self._held.get(origin, [])

    def _consumed(self, what, origin, sequence):
        if self._holds(origin, sequence):
            self._held[origin].remove(sequence)
            self.memory.consumed.append((*what, origin, sequence))
        self._done.setdefault(origin, []).append(sequence)

    def _acknowledge(self):
        """Raises the cursor to before what the application still has, and says so of what came in this session."""
        cursor = self.memory.cursor
        for origin, done in self._done.items():
            lowest = min(self._held.get(origin, []), default=RETIRED)
            passed = [sequence for sequence in done if sequence < lowest]
            cursor[origin] = max([cursor.get(origin, 0), *passed])
            self._done[origin] = [sequence for sequence in done if sequence >= lowest]
        self.memory.save()
        ack = []
        for origin, given in self._given.items():
            passed = [sequence for sequence in given if sequence <= cursor.get(origin, 0)]
            if passed:
                ack.append((origin, max(passed)))
                self._given[origin] = [sequence for sequence in given if sequence > cursor[origin]]
        if ack and self._live:
            self.connection.send(frame(ACK, ack))

    def _forget(self, stable):
        """Consumed messages of which no region can send a copy any more."""
        keep = []
        for *what, origin, sequence in self.memory.consumed:
            if sequence <= min(stable.get(origin, 0), self._covered.get(origin, 0)):
                self._seen[tuple(what)].remove((origin, sequence))
            else:
                keep.append((*what, origin, sequence))
        self.memory.consumed = keep
        self._seen = {what: places for what, places in self._seen.items() if places}


@dataclass
class End:
    """How a session ended."""

    why: str
    welcomed: bool = False
    regions: dict = None  # where to go
    final: bool = False


@dataclass
class Leaving:
    by: float
    regions: dict


@dataclass
class Refused:
    first: Message
    again: float
    times: int


def text(body):
    return body.decode("utf-8", "replace")
