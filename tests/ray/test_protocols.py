"""WebSocket and gRPC through the proxy are what they are without it: every case is played twice, directly and through
the proxy, and must end alike.

The WebSocket cases follow Autobahn's (framing, control frames, reserved bits and opcodes, fragmentation, UTF-8, limits,
closing); they are sent as raw bytes, and what comes back is compared as raw bytes. No Ray is needed: the servers
are aiohttp, as in Ray's dashboard, and grpcio, as in Ray Client and Serve.
"""

import asyncio
import struct
import threading
import time
from concurrent import futures
from types import SimpleNamespace

import grpc
import pytest
from aiohttp import WSMsgType, web
from proxy import Proxy
from head import free_ports

# --- WebSocket ---


def frame(opcode, payload=b"", fin=1, rsv=0, mask=b"\x01\x02\x03\x04", length=None):
    """A frame as a client sends it; `length` is the form of the length, 7, 16 or 64 bits, if not the shortest."""
    size = len(payload)
    length = length or (7 if size < 126 else 16 if size < 65536 else 64)
    first = bytes([fin << 7 | rsv << 4 | opcode])
    marks = 0x80 if mask else 0
    if length == 7:
        head = first + bytes([marks | size])
    elif length == 16:
        head = first + bytes([marks | 126]) + struct.pack(">H", size)
    else:
        head = first + bytes([marks | 127]) + struct.pack(">Q", size)
    if not mask:
        return head + payload
    key = int.from_bytes((mask * (size // 4 + 1))[:size], "big")
    return head + mask + (int.from_bytes(payload, "big") ^ key).to_bytes(size, "big")


TEXT, BINARY, CONTINUATION, CLOSE, PING, PONG = 1, 2, 0, 8, 9, 10
BYE = frame(CLOSE, struct.pack(">H", 1000))


def websocket_cases():
    """`(name, pieces, all said at once)`: pieces go out one by one, with a moment between them."""
    for opcode, name in ((TEXT, "text"), (BINARY, "binary")):
        for size in (0, 1, 125, 126, 127, 128, 65535, 65536, 1 << 20, 8 << 20):
            yield f"{name} of {size}", [frame(opcode, b"*" * size), BYE]
        yield f"{name} of 65536 byte by byte in 997s", cut(frame(opcode, b"*" * 65536) + BYE, 997)
        yield f"{name} of 125 byte by byte", cut(frame(opcode, b"*" * 125) + BYE, 1)
        for length in (16, 64):
            yield f"{name} with a length of {length} bits too many", [frame(opcode, b"hello", length=length), BYE]
        yield f"{name} of 100 in one write", [frame(opcode, b"hello") * 100 + BYE]
        yield f"{name} unmasked", [frame(opcode, b"hello", mask=None), BYE]
        yield f"{name} under a mask of zeros", [frame(opcode, b"hello", mask=b"\0\0\0\0"), BYE]
        for pieces in (2, 3, 64):
            whole = [frame(opcode, b"part", fin=0)] + [frame(CONTINUATION, b"part", fin=0)] * (pieces - 2)
            whole.append(frame(CONTINUATION, b"end"))
            yield f"{name} in {pieces} fragments", [*whole, BYE]
            yield f"{name} in {pieces} fragments at once", [b"".join(whole) + BYE]
            yield f"{name} in {pieces} fragments, pings between", [b"".join(part + frame(PING, b"p") for part in whole) + BYE]
        yield f"{name} begun within a message", [frame(opcode, b"a", fin=0), frame(opcode, b"b"), BYE]
        yield f"{name} of empty fragments", [frame(opcode, fin=0) + frame(CONTINUATION, fin=0) + frame(CONTINUATION), BYE]
        yield f"{name} never ended", [frame(opcode, b"a", fin=0), BYE]
        for bits in range(1, 8):
            yield f"{name} with reserved bits {bits}", [frame(opcode, b"hello", rsv=bits), BYE]
    for size in (0, 1, 124, 125, 126):
        yield f"ping of {size}", [frame(PING, b"\xfe" * size), BYE]
    yield "ping in fragments", [frame(PING, b"a", fin=0), frame(CONTINUATION, b"b"), BYE]
    yield "ten pings", [frame(PING, b"payload-%d" % n) for n in range(10)] + [BYE]
    yield "ten pings byte by byte", cut(b"".join(frame(PING, b"%d" % n) for n in range(10)) + BYE, 1)
    yield "unsolicited pong", [frame(PONG, b"hello"), frame(TEXT, b"on"), BYE]
    for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15):
        yield f"opcode {opcode}", [frame(opcode, b"hello"), BYE]
        yield f"opcode {opcode} after a text", [frame(TEXT, b"hello") + frame(opcode) + frame(PING), BYE]
    yield "continuation of nothing", [frame(CONTINUATION, b"hello"), BYE]
    yield "continuation of nothing, not ended", [frame(CONTINUATION, b"hello", fin=0), BYE]
    texts = {
        "plain": "Hello-µ@ßöäüàá-UTF-8!!".encode(), "four bytes": "\U0010ffff\U00010000".encode(), "none": b"",
        "surrogate": b"\xed\xa0\x80", "overlong": b"\xc0\xaf", "beyond Unicode": b"\xf4\x90\x80\x80", "lone continuation": b"\x80",
        "cut short": b"\xce\xba\xe1", "0xff": b"\xff", "five bytes": b"\xf8\x88\x80\x80\x80", "NUL": b"\0", "mark": "\ufeff".encode(),
    }  # fmt: skip
    for name, text in texts.items():
        yield f"UTF-8: {name}", [frame(TEXT, text), BYE]
        halves = [frame(TEXT, text[:1], fin=0), frame(CONTINUATION, text[1:])]
        yield f"UTF-8: {name}, in fragments within a letter", [*halves, BYE]
    codes = [0, 999, 1000, 1001, 1002, 1003, 1004, 1005, 1006, 1007, 1011, 1012, 1014, 1015, 1016, 1100, 2999, 3000, 3999, 4999, 5000, 65535]
    for code in codes:
        yield f"close {code}", [frame(CLOSE, struct.pack(">H", code))]
        yield f"close {code} and why", [frame(CLOSE, struct.pack(">H", code) + "schön".encode())]
    yield "close without a code", [frame(CLOSE)]
    yield "close with half a code", [frame(CLOSE, b"\x03")]
    yield "close with a reason that is no UTF-8", [frame(CLOSE, b"\x03\xe8\xce\xba\xe1")]
    yield "close with the longest reason", [frame(CLOSE, b"\x03\xe8" + b"*" * 123)]
    yield "close with too long a reason", [frame(CLOSE, b"\x03\xe8" + b"*" * 124)]
    yield "close twice", [BYE + BYE]
    yield "text after close", [BYE + frame(TEXT, b"hello")]
    yield "close within a message", [frame(TEXT, b"a", fin=0) + BYE]
    yield "gone without a word", [frame(TEXT, b"hello")]
    yield "gone within a frame", [frame(TEXT, b"hello")[:4]]


def cut(data, size):
    return [data[at : at + size] for at in range(0, len(data), size)]


class Echo:
    """An echo server on aiohttp in a thread of its own."""

    def __enter__(self):
        self.loop = asyncio.new_event_loop()
        ready = threading.Event()
        self.thread = threading.Thread(target=self.run, args=(ready,), daemon=True)
        self.thread.start()
        assert ready.wait(10)
        return self

    def run(self, ready):
        async def start():
            app = web.Application()
            app.router.add_get("/{rest:.*}", self.echo)
            self.runner = web.AppRunner(app, handler_cancellation=True)
            await self.runner.setup()
            await web.TCPSite(self.runner, "127.0.0.1", 0).start()
            self.port = self.runner.addresses[0][1]
            ready.set()

        self.loop.run_until_complete(start())
        self.loop.run_forever()

    async def echo(self, request):
        if request.headers.get("Upgrade") is None:
            return web.Response(text="ray")
        socket = web.WebSocketResponse(max_msg_size=0, compress=False)
        await socket.prepare(request)
        async for message in socket:
            if message.type == WSMsgType.TEXT:
                await socket.send_str(message.data)
            elif message.type == WSMsgType.BINARY:
                await socket.send_bytes(message.data)
        return socket

    def __exit__(self, *_):
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)


async def play(port, pieces):
    """What comes back, and whether the server closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        b"GET /ws HTTP/1.1\r\nHost: ray\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 "), head
    assert b"s3ppl mbitxaq9kygzzhzrbk+xoo=".replace(b" ", b"") in head.lower()
    said = b""
    listening = asyncio.ensure_future(hear(reader))
    for piece in pieces:
        writer.write(piece)
        await asyncio.sleep(0)
    if CLOSE not in {piece[0] & 15 for piece in pieces if piece}:
        await asyncio.sleep(0.2)
        if writer.can_write_eof() and not listening.done():
            writer.write_eof()
    said, closed = await asyncio.wait_for(listening, 60)
    writer.close()
    return said, closed


async def hear(reader):
    said = b""
    while True:
        try:
            more = await asyncio.wait_for(reader.read(1 << 16), 5)
        except TimeoutError:
            return said, False
        except ConnectionError:
            return said, True
        if not more:
            return said, True
        said += more


def serve_listener(port, upstream):
    return f'[[listen]]\naddress = "127.0.0.1:{port}"\nkind = "serve"\nupstream = "http://127.0.0.1:{upstream}"\n'


def test_a_websocket_is_the_same_through_the_proxy():
    cases = list(websocket_cases())
    assert len({name for name, _ in cases}) == len(cases) >= 150
    with Echo() as echo:
        (port,) = free_ports(1)
        ray = SimpleNamespace(url=f"http://127.0.0.1:{echo.port}", ports={})
        with Proxy(ray, serve_listener(port, echo.port)):

            async def differ():
                for name, pieces in cases:
                    # A reset may overtake the closing frame before it, on either way; not three times.
                    for _ in range(3):
                        direct, through = await asyncio.gather(play(echo.port, pieces), play(port, pieces))
                        if direct == through:
                            break
                    else:
                        yield name, [(len(said), said[-40:], closed) for said, closed in (direct, through)]

            async def collect():
                return {name: pair async for name, pair in differ()}

            assert asyncio.run(collect()) == {}


# --- gRPC ---

SERVICE = "rayguard.test.Interop"


class Interop:
    """Methods that take and give bytes; what the first byte asks for is done."""

    def __init__(self):
        self.cancelled = threading.Event()

    def unary(self, request, context):
        context.send_initial_metadata((("x-initial", "one"), ("x-initial-bin", b"\0\xff")))
        context.set_trailing_metadata((("x-trailing", "two"), ("x-trailing-bin", b"\xfe\0")))
        if request[:1] == b"A":
            code = next(code for code in grpc.StatusCode if code.value[0] == request[1])
            context.abort(code, "why: 100 % schön\n")
        if request[:1] == b"S":
            context.add_callback(self.cancelled.set)
            time.sleep(1.5)
        if request[:1] == b"M":
            return repr(sorted(item for item in context.invocation_metadata() if item[0].startswith("x-sent"))).encode()
        if request[:1] == b"T":
            return b"%d" % (context.time_remaining() is not None and context.time_remaining() < 31)
        return request

    def server_stream(self, request, context):
        for n in range(int(request or b"0")):
            yield b"%d" % n
        context.set_trailing_metadata((("x-count", request.decode()),))

    def client_stream(self, requests, context):
        return b"%d" % sum(len(request) for request in requests)

    def bidi(self, requests, context):
        context.add_callback(self.cancelled.set)
        for request in requests:
            if request == b"abort":
                context.abort(grpc.StatusCode.DATA_LOSS, "half way")
            yield request

    def handler(self):
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Unary": grpc.unary_unary_rpc_method_handler(self.unary),
                "ServerStream": grpc.unary_stream_rpc_method_handler(self.server_stream),
                "ClientStream": grpc.stream_unary_rpc_method_handler(self.client_stream),
                "Bidi": grpc.stream_stream_rpc_method_handler(self.bidi),
            },
        )


class Caller:
    """A client, and what calls come to."""

    def __init__(self, port, interop):
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}", options)
        self.interop = interop
        path = f"/{SERVICE}/"
        self.unary = self.channel.unary_unary(path + "Unary")
        self.server_stream = self.channel.unary_stream(path + "ServerStream")
        self.client_stream = self.channel.stream_unary(path + "ClientStream")
        self.bidi = self.channel.stream_stream(path + "Bidi")
        self.absent = self.channel.unary_unary(path + "Absent")

    @staticmethod
    def metadata(pairs):
        return sorted(pair for pair in (tuple(pair) for pair in pairs or ()) if pair[0].startswith("x-") and "rayguard" not in pair[0])

    def outcome(self, call, request, **options):
        """Answer, status, details, and both kinds of metadata."""
        try:
            answer, done = call.with_call(request, **options)
        except grpc.RpcError as error:
            return error.code(), error.details(), self.metadata(error.initial_metadata()), self.metadata(error.trailing_metadata())
        return answer, done.code(), self.metadata(done.initial_metadata()), self.metadata(done.trailing_metadata())

    def stream(self, call):
        said = []
        try:
            said.extend(call)
        except grpc.RpcError as error:
            return said, error.code(), error.details()
        return said, call.code(), self.metadata(call.trailing_metadata())

    def deadline(self):
        self.interop.cancelled.clear()
        outcome = self.outcome(self.unary, b"S", timeout=0.4)
        return outcome[0], self.interop.cancelled.wait(5)

    def cancel(self):
        """A stream that its client cancels half way ends at the server."""
        self.interop.cancelled.clear()
        said = iter([b"one"])
        hold = threading.Event()

        def requests():
            yield from said
            hold.wait(10)

        call = self.bidi(requests())
        first = next(call)
        call.cancel()
        hold.set()
        return first, call.code(), self.interop.cancelled.wait(5)

    def turns(self):
        """Question and answer by turns on one stream."""
        asked = threading.Semaphore(0)
        questions = [b"%d" % n for n in range(50)]

        def requests():
            for question in questions:
                asked.acquire()
                yield question

        call, said = self.bidi(requests()), []
        asked.release()
        for answer in call:
            said.append(answer)
            asked.release()
        return said, call.code()


GRPC_CASES = {
    "an answer with metadata": lambda it: it.outcome(it.unary, b"hello", timeout=30),
    "an empty message": lambda it: it.outcome(it.unary, b"", timeout=30),
    "20 MiB each way": lambda it: [len(it.outcome(it.unary, b"x" * (20 << 20), timeout=60)[0])],
    "what the client sends along": lambda it: it.outcome(it.unary, b"M", metadata=(("x-sent", "a, b"), ("x-sent-bin", bytes(range(256)))), timeout=30),
    "a deadline that reaches the server": lambda it: it.outcome(it.unary, b"T", timeout=30),
    "gzip": lambda it: it.outcome(it.unary, b"z" * 100_000, compression=grpc.Compression.Gzip, timeout=30),
    "a method that is not there": lambda it: it.outcome(it.absent, b"", timeout=30)[:2],
    "a deadline that passes": lambda it: it.deadline(),
    "a call that is cancelled": lambda it: it.cancel(),
    "a stream of 1000": lambda it: it.stream(it.server_stream(b"1000", timeout=60)),
    "a stream of none": lambda it: it.stream(it.server_stream(b"0", timeout=30)),
    "a stream to the server": lambda it: it.outcome(it.client_stream, iter([b"x" * 10_000] * 300), timeout=60),
    "by turns": lambda it: it.turns(),
    "an abort half way": lambda it: it.stream(it.bidi(iter([b"a", b"b", b"abort", b"c"]), timeout=30)),
    "8 at once": lambda it: sorted(future.result() for future in [it.unary.future(b"%d" % n, timeout=30) for n in range(8)]),
    **{
        f"status {code.name}": lambda it, code=code: it.outcome(it.unary, b"A" + bytes([code.value[0]]), timeout=30)
        for code in grpc.StatusCode
        if code is not grpc.StatusCode.OK
    },
}


@pytest.fixture(scope="module")
def callers():
    interop = Interop()
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    server = grpc.server(futures.ThreadPoolExecutor(16), [interop.handler()], options=options)
    upstream = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with Echo() as echo:
        (port,) = free_ports(1)
        ray = SimpleNamespace(url=f"http://127.0.0.1:{echo.port}", ports={})
        with Proxy(ray, serve_listener(port, upstream)):
            yield Caller(upstream, interop), Caller(port, interop)
    server.stop(None)


@pytest.mark.parametrize("case", GRPC_CASES)
def test_grpc_is_the_same_through_the_proxy(callers, case):
    direct, through = (GRPC_CASES[case](caller) for caller in callers)
    assert through == direct
