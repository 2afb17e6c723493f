#!/usr/bin/env python3
"""How does the cost of a request grow with what there is? One quantity at a time, all else as in `cost.py`.

    clients      known to the proxy, each by an address of its own; they ask in turn
    classes      of the operator's, beside those that are built in; one route leads to each, and they are asked in turn
    routes       of the operator's; the request is for none of them
    connections  open and idle, beside the 8 that ask
    waiting      requests in the queue, of 64 clients, when permits come free; all are then answered
    waiters      clients in the queue, a request each, likewise

For each point two runs: one counts user instructions per request in the clients' tasks (callgrind, switched on
once the state is there), the other takes the memory resident of the same state. Both are of little account to
what else the machine does. Replicas are `replicas.py`'s: what they cost does not come with requests.

    cargo build --release && python3 benches/proxy/curves.py [QUANTITY...] [--rayguard PATH]
"""

import argparse, contextlib, os, pathlib, resource, signal, socket, socketserver, subprocess, sys, tempfile, threading, time

from cost import BACKEND, FRONT, RAYGUARD_CONF, await_port, rss_kib
from instructions import CLIENT_TASKS, functions, read_answer

# Whom a request is made for is told by a header, as behind a load balancer.
CONF = 'trusted_proxies = ["127.0.0.0/8"]\n' + RAYGUARD_CONF
PERMITS = 8
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 1024\r\n\r\n" + b"x" * 1024


class Backend(socketserver.ThreadingTCPServer):
    """Answers, but for what it is asked to hold."""

    allow_reuse_address, daemon_threads, request_queue_size = True, True, 1024
    free = threading.Event()

    class RequestHandlerClass(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with contextlib.suppress(ConnectionError):
                while head := self.request.recv(65536):
                    if b"GET /hold" in head:
                        Backend.free.wait()
                    self.request.sendall(ANSWER)

    def __init__(self):
        super().__init__(("127.0.0.1", BACKEND), self.RequestHandlerClass)


def connect():
    return socket.create_connection(("127.0.0.1", FRONT))


def request(path="/app", client=0):
    address = f"10.{client >> 16}.{client >> 8 & 255}.{client & 255}"
    return f"GET {path} HTTP/1.1\r\nhost: ray\r\nx-forwarded-for: {address}\r\n\r\n".encode()


def ask_in_turn(connections, requests):
    """All connections ask, then all are answered, until there is nothing more to ask."""
    requests = iter(requests)
    while asked := [(connection, asked) for connection, asked in zip(connections, requests)]:
        for connection, one in asked:
            connection.sendall(one)
        for connection, _ in asked:
            assert read_answer(connection) == b"200"


class Point:
    """What there is at one point of a curve, and the requests that are measured there."""

    config, count = CONF, 800

    def __init__(self, size):
        self.size, self.held = size, []

    def prepare(self, connections):
        pass

    def requests(self):
        return [request()] * self.count

    def measure(self, connections):
        ask_in_turn(connections, self.requests())
        return self.count


class Clients(Point):
    sizes = 10, 1_000, 100_000, 1_000_000

    def prepare(self, connections):
        ask_in_turn(connections, (request(client=client) for client in range(self.size)))

    def requests(self):
        return [request(client=n * 7919 % self.size) for n in range(self.count)]


class Classes(Point):
    sizes = 16, 64, 216

    def __init__(self, size):
        super().__init__(size)
        self.config = CONF + "".join(
            f'[class.own-{n}]\nmodule = "Serve"\n[[route]]\npath = "/own/{n}"\nclass = "own-{n}"\n' for n in range(size)
        )

    def requests(self):
        return [request(f"/own/{n * 7 % self.size}") for n in range(self.count)]


class Routes(Point):
    sizes = 0, 16, 64, 256

    def __init__(self, size):
        super().__init__(size)
        self.config = CONF + "".join(f'[[route]]\npath = "/own/{{name}}/{n}"\nclass = "serve"\n' for n in range(size))

    def requests(self):
        return [request(f"/own/app/none-{n % 64}") for n in range(self.count)]


class Connections(Point):
    sizes = 64, 1_000, 10_000

    def prepare(self, connections):
        while len(self.held) < self.size:
            self.held.append(connect())
            ask_in_turn(self.held[-1:], [request(client=len(self.held))])


class Waiting(Point):
    sizes, clients = (100, 1_000, 10_000), 64
    config = CONF + f'[class.serve]\nin_flight = {PERMITS}\nqueue = {{ len = 100000, wait = "5m" }}\n'

    def prepare(self, connections):
        Backend.free.clear()
        for connection in connections:
            connection.sendall(request("/hold"))
        time.sleep(1)
        for n in range(self.size):
            self.held.append(connect())
            self.held[-1].sendall(request(client=1 + n % self.clients))
        time.sleep(2)

    def measure(self, connections):
        Backend.free.set()
        for connection in connections + self.held:
            assert read_answer(connection) == b"200"
        return len(connections) + self.size


class Waiters(Waiting):
    sizes, clients = (16, 64, 256, 1_000), 1_000


CURVES = {
    "clients": Clients, "classes": Classes, "routes": Routes, "connections": Connections, "waiting": Waiting,
    "waiters": Waiters,
}  # fmt: skip


def run(point, home, rayguard, count):
    """Instructions per request of this point, or KiB resident."""
    pathlib.Path(home, "rayguard.toml").write_text(point.config)
    out = pathlib.Path(home, f"callgrind.{time.monotonic_ns()}")
    valgrind = ["valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={out}"] if count else []
    with open(pathlib.Path(home, "rayguard.out"), "w") as log:
        command = [*valgrind, rayguard, "run", "--config", "rayguard.toml"]
        process = subprocess.Popen(command, cwd=home, stdout=log, stderr=log, env={**os.environ, "TOKIO_WORKER_THREADS": "1"})
    control = lambda option: subprocess.run(["callgrind_control", *option, str(process.pid)], check=True, capture_output=True)
    try:
        for _ in range(6):
            try:
                await_port(FRONT)
                break
            except SystemExit:
                pass
        connections = [connect() for _ in range(PERMITS)]
        ask_in_turn(connections, [request()] * 80)
        point.prepare(connections)
        if not count:
            time.sleep(1)
            return rss_kib(process)
        control(["-i", "on"])
        if not isinstance(point, Waiting):  # those connections wait for their answers
            ask_in_turn(connections, [request()] * 80)
        control(["-z"])
        requests = point.measure(connections)
        control(["-d"])
        return functions(f"{out}.1", "yes")[CLIENT_TASKS] / requests
    finally:
        Backend.free.set()
        process.kill() if point.held else process.send_signal(signal.SIGTERM)  # they would be drained, for long
        process.wait(120)
        for connection in point.held:
            connection.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("quantities", nargs="*", metavar="QUANTITY", help="all, unless named")
    root = pathlib.Path(__file__).resolve().parents[2]
    parser.add_argument("--rayguard", default=root / "target" / "release" / "rayguard", help="a build with symbols")
    arguments = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    backend = Backend()
    threading.Thread(target=backend.serve_forever, daemon=True).start()
    rayguard = str(pathlib.Path(arguments.rayguard).resolve())
    with tempfile.TemporaryDirectory() as home:
        for name in arguments.quantities or CURVES:
            print(f"\n{name:>12}  instructions per request  MiB resident")
            for size in CURVES[name].sizes:
                instructions, resident = (run(CURVES[name](size), home, rayguard, count) for count in (True, False))
                print(f"{size:12,}  {instructions:24,.0f}  {resident / 1024:12.1f}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
