#!/usr/bin/env python3
"""Teaches an instrumented rayguard what it will do in earnest: the training run of `.ci/pgo`.

    python3 benches/proxy/train.py BINARY --profiles DIR [--seconds 30]

Needs Python and nothing else. Ray is played by a server of this file in a process of its own; the
binary runs as it is shipped, and is asked for everything that a head is asked for, in shares of time:

    forwarded   kept connections, heads as wrk, Ray's SDK, KubeRay's client and a browser write them
    shed        a class over its rate, as HTTP/1.1 and HTTP/2
    coalesced   many tabs that ask for one list
    h2          HTTP/2 with prior knowledge, streams side by side
    WebSocket   log tails, shared and whole; an application's echo
    uploads     packages of 1 MiB, submissions
    large       answers of 4 MiB, with a length and in chunks
    reload      the configuration read anew under load; metrics and admin API asked meanwhile

Every kind must have been answered as it should be, or the run fails: a profile of refusals or of errors
would make the shipped binary slower.
"""

import argparse, asyncio, base64, hashlib, os, pathlib, signal, socket, struct, subprocess, sys, tempfile, time

SCRAPES = pathlib.Path(__file__).resolve().parents[2] / "tests/fixtures/ray/scrapes"

CONFIG = """
state_dir = "{home}/state"
upstream = "http://127.0.0.1:{ray}"
[[listen]]
address = "127.0.0.1:{dashboard}"
[[listen]]
address = "127.0.0.1:{serve}"
kind = "serve"
upstream = "http://127.0.0.1:{ray}"
[admin]
listen = "127.0.0.1:{admin}"
[metrics]
targets = ["http://127.0.0.1:{ray}/metrics/node", "http://127.0.0.1:{ray}/metrics/dashboard"]
discovery_file = "off"
discover = false
interval = "1s"
timeout = "900ms"
[http]
connections_per_address_max = 4096
[class.narrow]
module = "Serve"
rate = "{rate}/s"
queue = {{ len = 0 }}
[[route]]
path = "/narrow/{{*rest}}"
class = "narrow"
"""

JOBS = b"[" + b",".join(
    b'{"type":"SUBMISSION","job_id":null,"submission_id":"raysubmit_%d","status":"SUCCEEDED","entrypoint":"python x.py"}' % n
    for n in range(150)
) + b"]"  # fmt: skip
LARGE = 4 << 20
LINE = b"(task pid=4711) epoch 17, loss 0.1234, a line as jobs write them\n"


# === Ray, played ===


class Ray(asyncio.Protocol):
    """HTTP/1.1 as far as rayguard speaks it to Ray."""

    def connection_made(self, transport):
        self.transport, self.got, self.echo = transport, b"", False
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data):
        self.got += data
        while self.got:
            if self.echo:
                return self.send_back()
            end = self.got.find(b"\r\n\r\n")
            if end < 0:
                return
            head = self.got[:end]
            length = int(value(head, b"content-length") or 0)
            if len(self.got) < end + 4 + length:
                return
            self.got = self.got[end + 4 + length :]
            self.answer(head.split(b" ", 2)[1].split(b"?")[0], head)

    def say(self, body, kind=b"application/json"):
        head = b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %d\r\nServer: Python/3.11 aiohttp\r\n\r\n"
        self.transport.write(head % (kind, len(body)) + body)

    def answer(self, path, head):
        if value(head, b"upgrade").lower() == b"websocket":
            self.upgrade(value(head, b"sec-websocket-key"), path)
        elif path == b"/api/jobs/" and head.startswith(b"GET "):
            # Long enough for others to ask the same.
            asyncio.get_running_loop().call_later(0.004, self.say, JOBS)
        elif path == b"/large":
            self.say(b"x" * LARGE, b"application/octet-stream")
        elif path == b"/chunked":
            self.transport.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            for _ in range(LARGE >> 16):
                self.transport.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")
            self.transport.write(b"0\r\n\r\n")
        elif path.startswith(b"/metrics/"):
            page = "idle0_44227.prom" if path.endswith(b"dashboard") else "after120jobs_8080.prom"
            self.say((SCRAPES / page).read_bytes(), b"text/plain; version=0.0.4")
        elif path == b"/api/gcs_healthz":
            self.say(b"success", b"text/plain")
        else:
            self.say(b"x" * 1024, b"text/plain")

    def upgrade(self, key, path):
        accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
        self.transport.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
        )
        if path.endswith(b"/logs/tail"):
            for _ in range(200):
                self.transport.write(bytes([0x81, len(LINE)]) + LINE)
            self.transport.write(b"\x88\x02\x03\xe8")
        else:
            self.echo = True

    def send_back(self):
        """Short masked frames, sent back as they are meant."""
        while len(self.got) >= 6 and len(self.got) >= 6 + (self.got[1] & 127):
            length = self.got[1] & 127
            mask, body = self.got[2:6], self.got[6 : 6 + length]
            first, self.got = self.got[0], self.got[6 + length :]
            plain = bytes(byte ^ mask[at % 4] for at, byte in enumerate(body))
            self.transport.write(bytes([first, length]) + plain)
            if first & 15 == 8:
                self.transport.close()


def value(head, name):
    """Of a header of a head, by its name in small letters; empty if it is not there."""
    at = head.lower().find(b"\r\n" + name + b":")
    return b"" if at < 0 else head[at + len(name) + 3 :].split(b"\r\n", 1)[0].strip()


async def play_ray(port):
    server = await asyncio.get_running_loop().create_server(Ray, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


# === those who ask ===

WRK = b"GET %s HTTP/1.1\r\nHost: 127.0.0.1:8266\r\n\r\n"
SDK = (
    b"GET %s HTTP/1.1\r\nHost: 127.0.0.1:8266\r\nUser-Agent: python-requests/2.32.5\r\nAccept-Encoding: gzip, deflate\r\n"
    b"Accept: */*\r\nConnection: keep-alive\r\nx-ray-version: 2.60.0\r\nAuthorization: Bearer 0123456789abcdef0123456789abcdef\r\n\r\n"
)
OPERATOR = (
    b"GET %s HTTP/1.1\r\nHost: raycluster-head-svc.default.svc.cluster.local:8265\r\nUser-Agent: Go-http-client/1.1\r\n"
    b"Content-Type: application/json\r\nX-Ray-Authorization: Bearer 0123456789abcdef\r\nAccept-Encoding: gzip\r\n\r\n"
)
BROWSER = (
    b"GET %s HTTP/1.1\r\nHost: ray.example.org\r\nConnection: keep-alive\r\nsec-ch-ua-platform: \"Linux\"\r\n"
    b"User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36\r\n"
    b"Accept: application/json, text/plain, */*\r\nsec-ch-ua: \"Chromium\";v=\"142\", \"Not_A Brand\";v=\"99\"\r\nsec-ch-ua-mobile: ?0\r\n"
    b"Sec-Fetch-Site: same-origin\r\nSec-Fetch-Mode: cors\r\nSec-Fetch-Dest: empty\r\nReferer: http://ray.example.org/\r\n"
    b"Accept-Encoding: gzip, deflate, br, zstd\r\nAccept-Language: en-GB,en;q=0.9\r\nCookie: ray-authentication-token=0123456789abcdef\r\n\r\n"
)


class Count:
    """What came of one kind of request."""

    def __init__(self, *good):
        self.good, self.answers, self.bad = good, 0, {}

    def add(self, status):
        if status in self.good:
            self.answers += 1
        else:
            self.bad[status] = self.bad.get(status, 0) + 1


async def read_answer(reader):
    """The status of an answer that is read whole."""
    head = await reader.readuntil(b"\r\n\r\n")
    status = int(head[9:12])
    if value(head, b"transfer-encoding").lower() == b"chunked":
        while size := int((await reader.readuntil(b"\r\n")).strip(), 16):
            await reader.readexactly(size + 2)
        await reader.readexactly(2)
    else:
        await reader.readexactly(int(value(head, b"content-length") or 0))
    return status


async def keep_asking(port, requests, count, until, pause=0.0, kept=True):
    """One client in a loop, its requests in turns; on one connection, or on a new one for each."""
    writer, turn = None, 0
    while time.monotonic() < until:
        if writer is None:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
        writer.write(requests[turn % len(requests)])
        await writer.drain()
        count.add(await read_answer(reader))
        turn += 1
        if not kept:
            writer.close()
            writer = None
        if pause:
            await asyncio.sleep(pause)
    if writer:
        writer.close()


def websocket_head(path):
    return (
        b"GET %s HTTP/1.1\r\nHost: 127.0.0.1:8266\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n" % path
    )


async def follow(port, count, until):
    """Reads one log tail after the other, to the end."""
    while time.monotonic() < until:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(websocket_head(b"/api/jobs/raysubmit_1/logs/tail"))
        status = int((await reader.readuntil(b"\r\n\r\n"))[9:12])
        whole = len(await reader.read(-1)) if status == 101 else 0
        count.add(status if whole >= 200 * len(LINE) else f"{status}, a tail of {whole} bytes")
        writer.close()


async def talk(port, count, until):
    """An application's WebSocket that sends back what it gets."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(websocket_head(b"/echo"))
    await reader.readuntil(b"\r\n\r\n")
    mask, said = b"\x11\x22\x33\x44", b"a token, and another, as a model streams them"
    frame = bytes([0x81, 0x80 | len(said)]) + mask + bytes(byte ^ mask[at % 4] for at, byte in enumerate(said))
    while time.monotonic() < until:
        writer.write(frame)
        back = await reader.readexactly(2 + len(said))
        count.add("echo" if back[2:] == said else "another echo")
        await asyncio.sleep(0.002)
    writer.close()


def frame(kind, flags, stream, body=b""):
    return struct.pack(">I", len(body))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + body


def literal(name, text):
    return b"\x00" + bytes([len(name)]) + name + bytes([len(text)]) + text


async def http2(port, path, count, until, side_by_side=16):
    """HTTP/2 with prior knowledge: so many streams at a time, whose statuses come as one byte each."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    # No dynamic table, so that `:status` is written out or one of the static entries.
    writer.write(frame(4, 0, 0, struct.pack(">HIHI", 1, 0, 4, 0x7FFFFFFF)) + frame(8, 0, 0, struct.pack(">I", 0x7FFF0000)))
    head = b"\x82\x86\x04" + bytes([len(path)]) + path + b"\x01\x0e127.0.0.1:8266"
    head += literal(b"user-agent", b"grpc-python/1.76") + literal(b"authorization", b"Bearer 0123456789abcdef")
    streams, open_ = iter(range(1, 1 << 30, 2)), 0
    while True:
        while open_ < side_by_side and time.monotonic() < until:
            writer.write(frame(1, 5, next(streams), head))
            open_ += 1
        if not open_:
            break
        await writer.drain()
        top = await reader.readexactly(9)
        kind, flags = top[3], top[4]
        body = await reader.readexactly(int.from_bytes(top[:3], "big"))
        if kind == 4 and not flags & 1:
            writer.write(frame(4, 1, 0))
        elif kind == 6 and not flags & 1:
            writer.write(frame(6, 1, 0, body))
        elif kind == 1:
            # A change of the table's size may come first. 0x88 is `:status: 200`; 0x08 a status that is written out.
            field = body.lstrip(b"\x20")
            count.add("h2 200" if field[:1] == b"\x88" else "h2 other")
        elif kind in (3, 7):
            count.add(f"frame of kind {kind}")
            break
        if kind in (0, 1) and flags & 1:
            open_ -= 1
    writer.close()


async def reload(process, path, text, count, until):
    for turn in range(1000):
        if time.monotonic() >= until:
            return
        await asyncio.sleep(1.0)
        path.write_text(text + f"[log]\nlevel = \"{'warn' if turn % 2 else 'error'}\"\n")
        process.send_signal(signal.SIGHUP)
        count.add("reload")


def post(path, body):
    head = b"Host: 127.0.0.1:8266\r\nUser-Agent: python-requests/2.32.5\r\nContent-Type: application/json\r\n"
    return b"POST %s HTTP/1.1\r\n%bContent-Length: %d\r\n\r\n%b" % (path, head, len(body), body)


def put(path, size):
    return b"PUT %s HTTP/1.1\r\nHost: 127.0.0.1:8266\r\nContent-Length: %d\r\n\r\n" % (path, size) + b"x" * size


async def train(ports, process, path, text, seconds):
    """Everything in turns, each for its share of the time; what came of it, by kind."""
    counts = {}
    ray, dashboard, serve, admin = ports

    async def stage(name, share, good, *clients):
        count = counts[name] = Count(*good)
        until = time.monotonic() + seconds * share
        await asyncio.gather(*(client(count, until) for client in clients))

    def asking(port, *requests, **how):
        return lambda count, until: keep_asking(port, requests, count, until, **how)

    job = b"/api/jobs/raysubmit_%d"
    polls = [head % (job % n) for n in range(8) for head in (SDK, OPERATOR, BROWSER)]
    await stage("forwarded by Serve", 0.25, [200], *[asking(serve, WRK % b"/app")] * 64)
    await stage("forwarded to the dashboard", 0.12, [200], *[asking(dashboard, *polls, pause=0.004)] * 8)
    await stage("a connection each", 0.05, [200], *[asking(dashboard, SDK % b"/api/version", kept=False)] * 4)
    await stage("shed", 0.12, [429, 503], *[asking(serve, WRK % b"/narrow/app")] * 32)
    await stage("coalesced", 0.07, [200], *[asking(dashboard, BROWSER % b"/api/jobs/")] * 16)
    await stage("h2", 0.12, ["h2 200"], *[lambda count, until: http2(serve, b"/app", count, until)] * 4)
    await stage("h2, shed", 0.04, ["h2 other"], *[lambda count, until: http2(serve, b"/narrow/app", count, until)] * 2)
    await stage("log tails", 0.05, [101], *[lambda count, until: follow(dashboard, count, until)] * 24)
    await stage("WebSockets", 0.05, ["echo"], *[lambda count, until: talk(serve, count, until)] * 8)
    await stage("uploads", 0.04, [200], *[asking(serve, put(b"/upload", 1 << 20))] * 4)
    await stage("submissions", 0.02, [200, 429, 503], asking(dashboard, post(b"/api/jobs/", b'{"entrypoint": "python x.py"}')))
    await stage("large answers", 0.04, [200], *[asking(serve, SDK % b"/large", WRK % b"/chunked")] * 2)
    await stage(
        "reloads, metrics and admin", 0.05, [200, "reload"],
        asking(admin, WRK % b"/metrics", WRK % b"/api/v1/state", WRK % b"/api/v1/clients", pause=0.1),
        asking(serve, WRK % b"/app", pause=0.002), lambda count, until: reload(process, path, text, count, until),
    )  # fmt: skip
    return counts


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


async def answers(port, seconds=20):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            (await asyncio.open_connection("127.0.0.1", port))[1].close()
            return
        except OSError:
            await asyncio.sleep(0.1)
    sys.exit(f"nothing listens on port {port}")


async def run(arguments, home):
    ports = free_ports(4)
    ray, dashboard, serve, admin = ports
    # A rate that 32 clients in a loop exceed a thousandfold.
    text = CONFIG.format(home=home, ray=ray, dashboard=dashboard, serve=serve, admin=admin, rate=1)
    path = pathlib.Path(home, "rayguard.toml")
    path.write_text(text)
    profiles = os.path.join(os.path.abspath(arguments.profiles), "rayguard-%p-%m.profraw")
    environment = {**os.environ, "LLVM_PROFILE_FILE": profiles, "TOKIO_WORKER_THREADS": "1"}
    played = subprocess.Popen([sys.executable, __file__, "--play-ray", str(ray)])
    process = None
    try:
        await answers(ray)
        process = subprocess.Popen([arguments.binary, "run", "--config", str(path)], env=environment, stderr=subprocess.DEVNULL)
        await answers(serve)
        counts = await train(ports, process, path, text, arguments.seconds)
        process.send_signal(signal.SIGTERM)
        if process.wait(60) != 0:
            sys.exit(f"rayguard ended with {process.returncode}")
    finally:
        for each in filter(None, (process, played)):
            if each.poll() is None:
                each.kill()
            each.wait()
    wrong = []
    for name, count in counts.items():
        bad = sum(count.bad.values())
        print(f"{name:28}{count.answers:9}" + (f"   otherwise: {count.bad}" if bad else ""))
        # A class over its rate lets one through a second; all else is one kind of answer.
        if count.answers < 5 or bad > count.answers * 0.05:
            wrong.append(name)
    if wrong:
        sys.exit(f"not trained as it should be: {', '.join(wrong)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", nargs="?")
    parser.add_argument("--profiles", default=".", metavar="DIR", help="where the instrumented binary writes")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--play-ray", type=int, metavar="PORT", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.play_ray:
        asyncio.run(play_ray(arguments.play_ray))
    elif not arguments.binary:
        parser.error("name the binary")
    else:
        with tempfile.TemporaryDirectory() as home:
            asyncio.run(run(arguments, home))


if __name__ == "__main__":
    main()
