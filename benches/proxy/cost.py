#!/usr/bin/env python3
"""What does a proxied request cost? Each proxy beside the others, on one machine.

One backend (nginx), one load (wrk), one worker per proxy (`--workers 2`: two). The proxies take turns, round after
round, so that whatever else the machine does falls on all of them, and every figure is a median
over the rounds. What is measured:

    cpu      user + system time per request of 1 KiB answers on 64 kept connections, and requests/s
    shed     the same for a refusal, beside what rayguard pays for a forwarded request
    flood    p99 of a polite client at 200/s: alone, while another is refused as fast as it can ask, and while as much
             load goes past the proxy to the backend, for what the load alone takes of the machine
    h2       as cpu, in HTTP/2 without TLS, by `h2load` (Debian: nghttp2-client), eight requests at once on each connection
    ws       the round trip of a WebSocket message of 64 bytes, to an echo behind the proxy and straight to it
    large    bodies of 64 MiB: MiB/s and CPU per MiB
    idle     RSS with 5,000 connections that have asked once, are kept, and have idled for a second
    tls      the same with 15,000 connections in TLS, and per connection beyond the first 5,000
    start    ms from starting the process to its first forwarded answer
    latency  what the proxy adds at an open-loop rate, p50 and p99, over asking the backend directly

CPU suffers less from a busy machine than throughput and latency do. One command for all:

    cargo build --profile dist && python3 benches/proxy/cost.py --rounds 5 --all
"""

import argparse, base64, concurrent.futures, hashlib, os, pathlib, re, resource, select, shutil, signal, socket, ssl, statistics
import subprocess, sys, tempfile, threading, time

BACKEND, FRONT, ECHO = 18470, 18471, 18472

BACKEND_CONF = """
worker_processes 1; daemon off; pid backend.pid; error_log backend.log crit;
worker_rlimit_nofile 20000; events { worker_connections 16384; }
http { access_log off; keepalive_requests 100000000; keepalive_timeout 600s; default_type text/plain; sendfile on;
  client_body_temp_path b; proxy_temp_path p; fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s;
  server { listen 127.0.0.1:%d backlog=4096; root .; location / { return 200 "%s"; } location /large { } } }
""" % (BACKEND, "x" * 1024)

NGINX_CONF = """
worker_processes WORKERS; daemon off; pid nginx.pid; error_log nginx.log crit;
worker_rlimit_nofile 20000; events { worker_connections 16384; }
http { access_log off; keepalive_requests 100000000; keepalive_timeout 600s; proxy_max_temp_file_size 0;
  client_body_temp_path b; proxy_temp_path p; fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s;
  upstream head { server 127.0.0.1:%d; keepalive 64; keepalive_requests 100000000; }
  server { listen 127.0.0.1:%d backlog=4096;
    location / { proxy_pass http://head; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_set_header Host $http_host; proxy_set_header X-Forwarded-For $remote_addr; } } }
""" % (BACKEND, FRONT)

HAPROXY_CONF = """
global
    nbthread WORKERS
    maxconn 9000
defaults
    mode http
    option forwardfor
    timeout connect 1s
    timeout client 600s
    timeout http-keep-alive 600s
    timeout server 60s
frontend proxy
    bind 127.0.0.1:%d backlog 4096
    default_backend head
backend head
    http-reuse always
    server ray 127.0.0.1:%d
""" % (FRONT, BACKEND)

ENVOY_CONF = """
static_resources:
  listeners:
  - address: {socket_address: {address: 127.0.0.1, port_value: %d}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: proxy
          use_remote_address: true
          route_config:
            virtual_hosts:
            - {name: all, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: head}}]}
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
  clusters:
  - name: head
    connect_timeout: 1s
    load_assignment:
      cluster_name: head
      endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: %d}}}}]}]
""" % (FRONT, BACKEND)

RAYGUARD_CONF = """
state_dir = "state"
upstream = "http://127.0.0.1:%d"
[[listen]]
address = "127.0.0.1:%d"
kind = "serve"
upstream = "http://127.0.0.1:%d"
[admin]
listen = "off"
[metrics]
discovery_file = "off"
discover = false
[http]
connections_max = 16384
connections_per_address_max = 16384
idle_timeout = "10m"
""" % (BACKEND, FRONT, BACKEND)

FIXTURES = pathlib.Path(__file__).resolve().parents[2] / "tests" / "fixtures" / "tls"
CERTIFICATE, KEY = FIXTURES / "server.pem", FIXTURES / "server.key"

# What the `tls` experiment changes: in which configuration, what becomes what.
IN_TLS = {
    "nginx": ("backlog=4096;\n    location / { proxy", f"ssl backlog=4096; ssl_certificate {CERTIFICATE}; ssl_certificate_key {KEY};\n    location / {{ proxy"),
    "rayguard": ('kind = "serve"\n', f'kind = "serve"\ntls = {{ certificate = "{CERTIFICATE}", key = "{KEY}" }}\n'),
}
IN_TLS["against"] = IN_TLS["rayguard"]

# Proxies that speak HTTP/2 on a port without TLS only when it is configured.
IN_H2 = {
    "nginx": (f"listen 127.0.0.1:{FRONT} backlog=4096;", f"listen 127.0.0.1:{FRONT} http2 backlog=4096;"),
    "haproxy": (f"bind 127.0.0.1:{FRONT} ", f"bind 127.0.0.1:{FRONT} proto h2 "),
}

# All of what is sent goes to the echo, and an upgrade is passed on.
TO_ECHO = {
    "nginx": ('proxy_set_header Connection "";', 'proxy_set_header Connection upgrade; proxy_set_header Upgrade websocket;'),
    "envoy": ("stat_prefix: proxy", "stat_prefix: proxy\n          upgrade_configs: [{upgrade_type: websocket}]"),
}

# All but a handful are over the rate, and no request waits.
SHEDDING = RAYGUARD_CONF + """
[class.serve]
rate = "1/s"
queue = { len = 0 }
"""

# One client's 500/s, of which a flood may have no more than a polite client does not need.
FLOODED = RAYGUARD_CONF + """
[class.serve]
per_client = { rate = "500/s" }
queue = { len = 0 }
"""


def contenders(home, arguments):
    root = pathlib.Path(__file__).resolve().parents[2]
    built = [root / "target" / profile / "rayguard" for profile in ("dist", "release")]
    rayguard = pathlib.Path(arguments.rayguard or next((path for path in built if path.exists()), built[0]))
    envoy = arguments.envoy or shutil.which("envoy")
    workers = str(arguments.workers)
    threads = {"TOKIO_WORKER_THREADS": workers}
    found = {}
    if shutil.which("nginx"):
        found["nginx"] = ("nginx.conf", NGINX_CONF.replace("WORKERS", workers), ["nginx", "-p", home, "-c", "nginx.conf"], {})
    if shutil.which("haproxy"):
        found["haproxy"] = ("haproxy.cfg", HAPROXY_CONF.replace("WORKERS", workers), ["haproxy", "-f", "haproxy.cfg"], {})
    if envoy:
        command = [envoy, "-c", "envoy.yaml", "--concurrency", workers, "--log-level", "error"]
        found["envoy"] = ("envoy.yaml", ENVOY_CONF, command, {})
    if rayguard.exists():
        command = [str(rayguard), "run", "--config", "rayguard.toml"]
        found["rayguard"] = ("rayguard.toml", RAYGUARD_CONF, command, threads)
    if arguments.against:
        command = [os.path.abspath(arguments.against), "run", "--config", "rayguard.toml"]
        found["against"] = ("rayguard.toml", RAYGUARD_CONF, command, threads)
    return found


def start(home, name, text, command, environment=None):
    pathlib.Path(home, name).write_text(text)
    log = open(pathlib.Path(home, name + ".out"), "w")
    begun = time.perf_counter()
    process = subprocess.Popen(command, cwd=home, stdout=log, stderr=log, env={**os.environ, **(environment or {})})
    process.begun = begun
    return process


def await_port(port):
    for _ in range(200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    sys.exit(f"nothing listens on port {port}")


def family(pid):
    pids = [pid]
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        try:
            for child in (task / "children").read_text().split():
                pids += family(int(child))
        except OSError:
            pass
    return pids


def cpu(pid):
    ticks = 0
    for member in family(pid):
        fields = pathlib.Path(f"/proc/{member}/stat").read_text().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def load(seconds, connections, path="/app", port=FRONT):
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", f"http://127.0.0.1:{port}{path}"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    requests = int(re.search(r"(\d+) requests in", said)[1])
    bad = int((re.search(r"Non-2xx or 3xx responses: (\d+)", said) or [0, 0])[1])
    return requests, float(re.search(r"Requests/sec:\s+([\d.]+)", said)[1]), bad


def measure_cpu(proxy, arguments):
    load(1, arguments.connections)
    before = cpu(proxy.pid)
    requests, rate, bad = load(arguments.seconds, arguments.connections)
    if bad:
        print(f"  {bad} of {requests} were not 2xx", file=sys.stderr)
    return {"us/request": (cpu(proxy.pid) - before) / requests * 1e6, "requests/s": rate}


def measure_shed(proxy, arguments):
    load(1, arguments.connections)
    before = cpu(proxy.pid)
    requests, rate, bad = load(arguments.seconds, arguments.connections)
    if bad < requests * 0.99:
        sys.exit(f"only {bad} of {requests} were refused")
    return {"us/refusal": (cpu(proxy.pid) - before) / requests * 1e6, "refusals/s": rate}


def measure_h2(proxy, arguments):
    url = f"http://127.0.0.1:{FRONT}/app"
    command = ["h2load", "-c", "8", "-m", "8", "-t", "1", "--warm-up-time", "1", "-D", str(arguments.seconds), url]
    before = cpu(proxy.pid)
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    took = cpu(proxy.pid) - before
    done, ok = (int(re.search(rf"(\d+) {word}", said)[1]) for word in ("done", "succeeded"))
    if ok < done or not done:
        sys.exit(f"{done - ok} of {done} requests failed:\n{said}")
    # The second of warming up is counted in no request, but costs as much as each of the others.
    return {"us/request": took * arguments.seconds / (arguments.seconds + 1) / done * 1e6, "requests/s": done / arguments.seconds}


def serve_echo():
    """A WebSocket server that sends back what comes, as it comes, on any path; one thread a connection."""
    listener = socket.create_server(("127.0.0.1", ECHO))

    def serve(connection):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        head = b""
        while b"\r\n\r\n" not in head:
            more = connection.recv(4096)
            if not more:
                return
            head += more
        key = re.search(rb"sec-websocket-key: (\S+)", head, re.I)
        if not key:
            return connection.close()  # rayguard asks which Ray it is
        accept = base64.b64encode(hashlib.sha1(key[1] + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()).decode()
        connection.sendall(f"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n".encode())
        while frame := read_frame(connection):
            payload = bytes(byte ^ frame[2 + at % 4] for at, byte in enumerate(frame[6:]))
            connection.sendall(bytes([frame[0], len(payload)]) + payload)

    def accept():
        while True:
            threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()


def read_frame(connection):
    """One frame of less than 126 bytes; empty at the end."""
    got = b""
    while len(got) < 2 or len(got) < 2 + (got[1] & 127) + (4 if got[1] & 128 else 0):
        more = connection.recv(4096)
        if not more:
            return b""
        got += more
    return got


def round_trips(port, seconds):
    """Of messages of 64 bytes, one after the other, in us."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(
            b"GET /app HTTP/1.1\r\nhost: ray\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
            b"sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        head = b""
        while b"\r\n\r\n" not in head:
            head += connection.recv(4096)
        if b" 101 " not in head:
            sys.exit(f"no upgrade: {head!r}")
        message = bytes([0x82, 0x80 | 64, 0, 0, 0, 0]) + bytes(64)
        times, end = [], time.perf_counter() + seconds
        while time.perf_counter() < end:
            begun = time.perf_counter()
            connection.sendall(message)
            if len(read_frame(connection)) != 66:
                sys.exit("a message was lost")
            times.append((time.perf_counter() - begun) * 1e6)
    times.sort()
    return times[len(times) // 2], times[int(len(times) * 0.99)]


def measure_ws(_, arguments):
    round_trips(FRONT, 0.3)
    direct, through = round_trips(ECHO, arguments.seconds), round_trips(FRONT, arguments.seconds)
    return {"added p50 us": through[0] - direct[0], "added p99 us": through[1] - direct[1], "direct p50": direct[0]}


LARGE_MIB = 64


def measure_large(proxy, arguments):
    before = cpu(proxy.pid)
    requests, rate, bad = load(arguments.seconds, 4, "/large")
    if bad or not requests:
        sys.exit(f"{bad} of {requests} large bodies failed")
    return {"MiB/s": rate * LARGE_MIB, "ms CPU/MiB": (cpu(proxy.pid) - before) / requests / LARGE_MIB * 1e3}


def ask(connection):
    connection.sendall(b"GET /app HTTP/1.1\r\nhost: ray\r\n\r\n")


def answered(connection, length=1024):
    """Reads one answer off, and whether it was whole."""
    got = b""
    while b"\r\n\r\n" not in got or len(got.split(b"\r\n\r\n", 1)[1]) < length:
        more = connection.recv(65536)
        if not more:
            return False
        got += more
    return True


def rss_kib(proxy):
    status = "".join(pathlib.Path(f"/proc/{pid}/status").read_text() for pid in family(proxy.pid))
    return sum(int(kib) for kib in re.findall(r"VmRSS:\s+(\d+)", status))


def keep(kept, count, tls=None):
    """Adds connections that have asked once, up to so many, and lets them idle for a second."""
    while len(kept) < count:
        connection = socket.create_connection(("127.0.0.1", FRONT))
        connection = tls.wrap_socket(connection) if tls else connection
        ask(connection)
        if not answered(connection):
            sys.exit("a connection was closed")
        kept.append(connection)
    time.sleep(1)


def measure_idle(proxy, arguments):
    kept = []
    keep(kept, 5000)
    rss = rss_kib(proxy)
    for connection in kept:
        connection.close()
    return {"RSS MiB": rss / 1024}


def measure_tls(proxy, arguments):
    tls = ssl.create_default_context()
    tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    kept = []
    keep(kept, 5000, tls)
    few = rss_kib(proxy)
    keep(kept, 15000, tls)
    many = rss_kib(proxy)
    for connection in kept:
        connection.close()
    return {"RSS MiB": many / 1024, "KiB each": (many - few) / 10000}


def measure_start(proxy, arguments):
    while True:
        try:
            with socket.create_connection(("127.0.0.1", FRONT)) as connection:
                ask(connection)
                if not answered(connection):
                    sys.exit("a connection was closed")
            return {"ms": (time.perf_counter() - proxy.begun) * 1e3}
        except ConnectionRefusedError:
            time.sleep(0.0005)


def measure_flood(_, arguments):
    polite = lambda: open_loop(FRONT, 200, arguments.seconds, "127.0.0.2")[1] / 1e3
    polite()
    measured = {"alone ms": polite()}
    for name, port in {"flooded ms": FRONT, "loaded ms": BACKEND}.items():
        with concurrent.futures.ThreadPoolExecutor() as beside:
            flood = beside.submit(load, arguments.seconds + 1, arguments.connections, port=port)
            time.sleep(0.5)
            measured[name] = polite()
            requests, rate, bad = flood.result()
        measured["refused/s" if port == FRONT else "beside/s"] = rate * (bad / requests if port == FRONT else 1)
    return measured


def open_loop(port, rate, seconds, source="127.0.0.1"):
    """Latencies in us from when a request was due, on 32 kept connections."""
    free = [socket.create_connection(("127.0.0.1", port), source_address=(source, 0)) for _ in range(32)]
    for connection in free:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    due_at, latencies = {}, []
    begin = time.perf_counter()
    sent = 0
    while sent < rate * seconds or due_at:
        now = time.perf_counter() - begin
        while sent < rate * seconds and sent / rate <= now and free:
            connection = free.pop()
            ask(connection)
            due_at[connection] = sent / rate
            sent += 1
        wait = max(0, sent / rate - (time.perf_counter() - begin)) if free and sent < rate * seconds else 1
        for connection in select.select(list(due_at), [], [], wait)[0]:
            if not answered(connection):
                sys.exit("a connection was closed")
            latencies.append((time.perf_counter() - begin - due_at.pop(connection)) * 1e6)
            free.append(connection)
    for connection in free:
        connection.close()
    latencies.sort()
    return latencies[len(latencies) // 2], latencies[int(len(latencies) * 0.99)]


def measure_latency(_, arguments):
    open_loop(FRONT, 500, 0.5)
    direct, through = open_loop(BACKEND, 500, arguments.seconds), open_loop(FRONT, 500, arguments.seconds)
    return {"added p50 us": through[0] - direct[0], "added p99 us": through[1] - direct[1]}


EXPERIMENTS = {
    "cpu": measure_cpu, "shed": measure_shed, "flood": measure_flood, "h2": measure_h2, "ws": measure_ws,
    "large": measure_large, "idle": measure_idle, "tls": measure_tls, "start": measure_start, "latency": measure_latency,
}  # fmt: skip


def run(name, home, arguments):
    """One experiment, the proxies in turns; what each measured, round by round."""
    measured = {}
    if name == "ws":
        serve_echo()
    for _ in range(arguments.rounds):
        for proxy_name, (file, text, command, environment) in contenders(home, arguments).items():
            if name in ("shed", "flood"):
                if proxy_name not in ("rayguard", "against"):
                    continue
                text = SHEDDING if name == "shed" else FLOODED
            if name == "tls":
                if proxy_name not in IN_TLS:
                    continue
                text = text.replace(*IN_TLS[proxy_name])
            if name == "h2" and proxy_name in IN_H2:
                text = text.replace(*IN_H2[proxy_name])
            if name == "ws":
                text = text.replace(*TO_ECHO.get(proxy_name, ("", "")), 1).replace(str(BACKEND), str(ECHO))
            proxy = start(home, file, text, command, environment)
            try:
                if name != "start":
                    await_port(FRONT)
                measured.setdefault(proxy_name, []).append(EXPERIMENTS[name](proxy, arguments))
            finally:
                end(proxy)
    return measured


def end(process):
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def show(name, measured):
    quantities = list(next(iter(measured.values()))[0])
    medians = {
        proxy: {quantity: statistics.median(round[quantity] for round in rounds) for quantity in quantities}
        for proxy, rounds in measured.items()
    }
    if "against" in measured:
        first = quantities[0]
        pairs = zip(measured["rayguard"], measured["against"], strict=True)
        ratios = sorted(one[first] / other[first] for one, other in pairs)
        print(f"\n{name}: {first}, rayguard over the other build, pair by pair: median {statistics.median(ratios):.3f}, {ratios[0]:.3f} to {ratios[-1]:.3f}")
    print(f"\n{name:10}" + "".join(f"{quantity:>14} {'spread':>17} {'x nginx':>8}" for quantity in quantities))
    for proxy, rounds in measured.items():
        line = f"{proxy:10}"
        for quantity in quantities:
            values = [round[quantity] for round in rounds]
            spread = f"{min(values):.1f}-{max(values):.1f}"
            base = medians.get("nginx", {}).get(quantity)
            ratio = f"{medians[proxy][quantity] / base:.2f}" if base else ""
            line += f"{medians[proxy][quantity]:14.1f} {spread:>17} {ratio:>8}"
        print(line, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="*", metavar="EXPERIMENT", help="cpu, unless named")
    parser.add_argument("--all", action="store_true", help="every experiment")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--workers", type=int, default=1, help="threads or processes of each proxy")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--envoy")
    parser.add_argument("--rayguard")
    parser.add_argument("--against", metavar="BINARY", help="another build of rayguard, in turns with the first")
    arguments = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    print(f"load average at the start: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as home:
        os.chmod(home, 0o755)
        with open(pathlib.Path(home, "large"), "wb") as large:
            large.truncate(LARGE_MIB << 20)
        backend = start(home, "backend.conf", BACKEND_CONF, ["nginx", "-p", home, "-c", "backend.conf"])
        try:
            await_port(BACKEND)
            for name in EXPERIMENTS if arguments.all else arguments.experiments or ["cpu"]:
                show(name, run(name, home, arguments))
        finally:
            end(backend)


if __name__ == "__main__":
    main()
