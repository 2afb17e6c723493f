#!/usr/bin/env python3
"""What does a proxied request cost? CPU per request of each proxy, on one machine.

One backend (nginx, 1 KiB answers), one load (wrk, 64 keep-alive connections), one worker per
proxy. The proxies take turns, round after round, so that whatever else the machine does falls on
all of them; the figure is the median over the rounds of (user + system time) / requests, which
suffers less from a busy machine than throughput does.

    cargo build --release && python3 benches/door/cost.py --rounds 5
"""

import argparse, os, pathlib, re, shutil, signal, socket, statistics, subprocess, sys, tempfile, time

BACKEND, FRONT = 18470, 18471

BACKEND_CONF = """
worker_processes 1; daemon off; pid backend.pid; error_log backend.log crit;
events { worker_connections 4096; }
http { access_log off; keepalive_requests 100000000; default_type text/plain;
  client_body_temp_path b; proxy_temp_path p; fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s;
  server { listen 127.0.0.1:%d backlog=4096; location / { return 200 "%s"; } } }
""" % (BACKEND, "x" * 1024)

NGINX_CONF = """
worker_processes 1; daemon off; pid nginx.pid; error_log nginx.log crit;
events { worker_connections 4096; }
http { access_log off; keepalive_requests 100000000;
  client_body_temp_path b; proxy_temp_path p; fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s;
  upstream head { server 127.0.0.1:%d; keepalive 64; keepalive_requests 100000000; }
  server { listen 127.0.0.1:%d backlog=4096;
    location / { proxy_pass http://head; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_set_header Host $http_host; proxy_set_header X-Forwarded-For $remote_addr; } } }
""" % (BACKEND, FRONT)

HAPROXY_CONF = """
global
    nbthread 1
    maxconn 8192
defaults
    mode http
    option forwardfor
    timeout connect 1s
    timeout client 60s
    timeout server 60s
frontend door
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
          stat_prefix: door
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
""" % (BACKEND, FRONT, BACKEND)


def contenders(home, arguments):
    root = pathlib.Path(__file__).resolve().parents[2]
    rayguard = pathlib.Path(arguments.rayguard or root / "target/release/rayguard")
    envoy = arguments.envoy or shutil.which("envoy")
    found = {}
    if shutil.which("nginx"):
        found["nginx"] = ("nginx.conf", NGINX_CONF, ["nginx", "-p", home, "-c", "nginx.conf"], {})
    if shutil.which("haproxy"):
        found["haproxy"] = ("haproxy.cfg", HAPROXY_CONF, ["haproxy", "-f", "haproxy.cfg"], {})
    if envoy:
        command = [envoy, "-c", "envoy.yaml", "--concurrency", "1", "--log-level", "error"]
        found["envoy"] = ("envoy.yaml", ENVOY_CONF, command, {})
    if rayguard.exists():
        command = [str(rayguard), "run", "--config", "rayguard.toml"]
        found["rayguard"] = ("rayguard.toml", RAYGUARD_CONF, command, {"TOKIO_WORKER_THREADS": "1"})
    return found


def start(home, name, text, command, environment=None):
    pathlib.Path(home, name).write_text(text)
    log = open(pathlib.Path(home, name + ".out"), "w")
    return subprocess.Popen(command, cwd=home, stdout=log, stderr=log, env={**os.environ, **(environment or {})})


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


def load(seconds, connections):
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", f"http://127.0.0.1:{FRONT}/app"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    requests = int(re.search(r"(\d+) requests in", said)[1])
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", said)
    if bad:
        print(f"  {bad[1]} of {requests} were not 2xx", file=sys.stderr)
    return requests, float(re.search(r"Requests/sec:\s+([\d.]+)", said)[1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--envoy")
    parser.add_argument("--rayguard")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        backend = start(home, "backend.conf", BACKEND_CONF, ["nginx", "-p", home, "-c", "backend.conf"])
        try:
            await_port(BACKEND)
            measured = {}
            for _ in range(arguments.rounds):
                for name, (file, text, command, environment) in contenders(home, arguments).items():
                    proxy = start(home, file, text, command, environment)
                    try:
                        await_port(FRONT)
                        load(1, arguments.connections)
                        before = cpu(proxy.pid)
                        requests, rate = load(arguments.seconds, arguments.connections)
                        measured.setdefault(name, []).append(((cpu(proxy.pid) - before) / requests * 1e6, rate))
                    finally:
                        proxy.send_signal(signal.SIGTERM)
                        try:
                            proxy.wait(5)
                        except subprocess.TimeoutExpired:
                            proxy.kill()
                            proxy.wait()
            base = statistics.median(cost for cost, _ in measured["nginx"]) if "nginx" in measured else None
            print(f"{'':10} {'us/request':>11} {'spread':>15} {'requests/s':>11} {'x nginx':>8}")
            for name, rounds in measured.items():
                costs = sorted(cost for cost, _ in rounds)
                middle = statistics.median(costs)
                rate = statistics.median(rate for _, rate in rounds)
                ratio = f"{middle / base:8.2f}" if base else ""
                print(f"{name:10} {middle:11.1f} {costs[0]:7.1f}-{costs[-1]:<7.1f} {rate:11.0f} {ratio}")
        finally:
            backend.send_signal(signal.SIGTERM)
            backend.wait()


if __name__ == "__main__":
    main()
