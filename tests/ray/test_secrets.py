"""A credential goes everywhere a credential can go, and comes out nowhere but at Ray.

Each place has a secret of its own, under answers, errors, refusals, traffic traces and reloads, with the log at its
most talkative; then everything that rayguard has written, shown, sent or said is searched for all of them.
"""

import base64
import hashlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time

import pytest
from proxy import RAYGUARD, Proxy, ask
from faulty import FaultyHead
from head import free_ports, wait_until
from receiver import Receiver
from test_faults import STILL, replace

PLACES = (
    "bearer", "basic", "cookie", "query", "xray", "apikey", "wrongkey", "subprotocol", "metadata", "body", "jobenv",
    "metricstoken", "promtoken", "promheader", "notifytoken", "admintoken", "wrongadmin", "redis", "proxyauth",
)  # fmt: skip
SECRET = {place: f"S3cr3t-{place}-{hashlib.sha256(place.encode()).hexdigest()[:12]}" for place in PLACES}


def clients_of_every_kind(proxy, client_port):
    """One of each place, each on several classes."""
    said = []

    def say(method="GET", path="/api/jobs/", headers=None, body=None):
        try:
            answer = ask(proxy.url, method, path, headers, body, timeout=8)
            said.append(f"{answer.status} {answer.headers} {answer.body.decode(errors='replace')}")
            return answer
        except (OSError, http.client.HTTPException) as problem:
            said.append(repr(problem))

    basic = base64.b64encode(f"user:{SECRET['basic']}".encode()).decode()
    everywhere = {
        "Authorization": f"Bearer {SECRET['bearer']}",
        "Cookie": f"ray-authentication-token={SECRET['cookie']}; other={SECRET['cookie']}",
        "X-Ray-Authorization": f"Bearer {SECRET['xray']}",
        "Proxy-Authorization": f"Bearer {SECRET['proxyauth']}",
    }
    for path in ("/api/version", "/api/jobs/", "/api/jobs/raysubmit_1", "/api/v0/tasks", "/nodes?view=summary", "/api/jobs/torn", "/no/such"):
        path += ("&" if "?" in path else "?") + f"token={SECRET['query']}"
        say(path=path, headers=everywhere)
        say(path=path, headers={"Authorization": f"Basic {basic}", "X-Rayguard-Key": SECRET["apikey"]})
        say(path=path, headers={"X-Rayguard-Key": SECRET["wrongkey"]})
        say("POST", path, everywhere, SECRET["body"].encode())
    job = {"entrypoint": "x", "runtime_env": {"env_vars": {"KEY": SECRET["jobenv"]}}}
    say("POST", "/api/jobs/", everywhere | {"Content-Type": "application/json"}, json.dumps(job).encode())
    tail = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}
    say(path="/api/jobs/raysubmit_1/logs/tail", headers=everywhere | tail | {"Sec-WebSocket-Protocol": SECRET["subprotocol"]})
    # What cannot be read: heads that their first reader refuses.
    for head in (
        f"GET /api/jobs/?token={SECRET['query']} HTTP/1.1\r\nHost: a\r\nAuthorization : Bearer {SECRET['bearer']}\r\n\r\n",
        f"GET /api/../%2e%2e/jobs/?token={SECRET['query']} HTTP/1.1\r\nHost: a\r\nCookie: {SECRET['cookie']}\r\n\r\n",
        f"GET /\x01?token={SECRET['query']} HTTP/1.1\r\nHost: a\r\nAuthorization: {SECRET['bearer']}\r\n\r\n",
        f"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\nX-Ray-Authorization: {SECRET['xray']}\r\n\r\n{SECRET['body']}",
    ):
        with socket.create_connection(("127.0.0.1", proxy.port), 5) as line:
            line.sendall(head.encode())
            line.settimeout(3)
            try:
                said.append(line.recv(65536).decode(errors="replace"))
            except OSError as problem:
                said.append(repr(problem))
    grpc = pytest.importorskip("grpc")
    channel = grpc.insecure_channel(f"127.0.0.1:{client_port}")
    call = channel.unary_unary("/ray.rpc.RayletDriver/ClusterInfo")
    for _ in range(3):
        try:
            call(b"", timeout=3, metadata=(("authorization", f"Bearer {SECRET['metadata']}"), ("client_id", "someone")))
        except grpc.RpcError as problem:
            said.append(str(problem.details()))
    channel.close()
    return said


def commands(proxy, request):
    """Every command that looks at a proxy or at its files."""
    admin, config = ["--admin", f"http://127.0.0.1:{proxy.admin_port}"], ["--config", str(proxy.config)]
    for arguments in (
        ["check", *config], ["doctor", *config], ["status", *admin], ["clients", *admin], ["limits", *admin], ["alerts", *admin],
        ["log", *config], ["explain", request, *config], ["pin", "job-status", "in_flight=2", "--for", "1h", "--why", "x", *admin],
    ):  # fmt: skip
        done = subprocess.run(
            [RAYGUARD, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
            env=os.environ | {"RAYGUARD_ADMIN_TOKEN": SECRET["wrongadmin"]},
        )  # fmt: skip
        yield " ".join(arguments), done.stdout + done.stderr


def test_no_credential_is_written_shown_or_sent_anywhere(tmp_path):
    (hook,) = free_ports(1)
    digest = hashlib.sha256(SECRET["apikey"].encode()).hexdigest()
    tables = f"""
[log]
level = "trace"
[api_keys.nightly]
sha256 = "{digest}"
[class.job-list]
in_flight = {{ initial = 1, min = 1, max = 2 }}
[class.state-heavy]
require_key = true
[class.job-submit]
rate = {{ initial = "1/m", min = "1/m", max = "1/m" }}
[replicas]
url = "redis://127.0.0.1:1"
password = {{ env = "REDIS_SECRET" }}
count = 2
[[alerts.notify]]
kind = "webhook"
url = "http://127.0.0.1:{hook}/hook"
token = {{ env = "NOTIFY_SECRET" }}
[signal.asked]
target = 1
sources = [{{ promql = "max(up)" }}]
[alerts.rule.upstream-down]
for = "0s"
clear = "1s"
"""
    with FaultyHead() as faulty:
        faulty.ports = {"client": faulty.port}  # where nothing speaks gRPC
        trace = tmp_path / "trace"
        names = {"REDIS": "redis", "NOTIFY": "notifytoken", "METRICS": "metricstoken", "PROM": "promtoken", "ADMIN": "admintoken"}
        env = {f"{name}_SECRET": SECRET[place] for name, place in names.items()}
        env["PROM_HEADERS"] = json.dumps({"X-Scope-Key": SECRET["promheader"]})
        metrics = faulty.metrics + 'token = { env = "METRICS_SECRET" }\n'
        # A Prometheus that refuses every query.
        metrics += f'prometheus = "http://127.0.0.1:{faulty.port}/prometheus?tenant=a"\n'
        metrics += 'prometheus_token = { env = "PROM_SECRET" }\nprometheus_headers_from = { env = "PROM_HEADERS" }\n'
        proxy = Proxy(faulty, metrics + STILL + tables, ["--record", str(trace)], ray_client=True, env=env)
        text = proxy.config.read_text()
        text = text.replace(f'[admin]\nlisten = "127.0.0.1:{proxy.admin_port}"\n', f'[admin]\nlisten = "127.0.0.1:{proxy.admin_port}"\ntoken = {{ env = "ADMIN_SECRET" }}\n')
        proxy.config.write_text(text)
        receiver = Receiver(hook)
        outputs = {}
        with proxy:
            said = clients_of_every_kind(proxy, proxy.client_port)
            threads = [threading.Thread(target=lambda: said.extend(clients_of_every_kind(proxy, proxy.client_port))) for _ in range(4)]
            [thread.start() for thread in threads]
            [thread.join(120) for thread in threads]
            # Configurations in which a secret stands, where none may stand.
            host = {"Host": f"127.0.0.1:{proxy.admin_port}"}
            for number, wrong in enumerate((
                text.replace('password = { env = "REDIS_SECRET" }', f'password = "{SECRET["redis"]}"'),
                text.replace('token = { env = "ADMIN_SECRET" }', f'token = "{SECRET["admintoken"]}"'),
                text.replace('token = { env = "ADMIN_SECRET" }', f'tokn = "{SECRET["admintoken"]}'),
                text.replace("redis://127", f"redis://:{SECRET['redis']}@127"),
                text.replace('prometheus = "http://127', f'prometheus = "http://me:{SECRET["promtoken"]}@127'),
                text.replace(f"http://127.0.0.1:{hook}", f"http://user:{SECRET['notifytoken']}@127.0.0.1:{hook}").replace("webhook", "webhok"),
            )):  # fmt: skip
                replace(proxy.config, wrong)
                proxy.session.popen.send_signal(signal.SIGHUP)
                wait_until("it is refused", lambda: proxy.admin("/api/v1/state")["config_problem"], 20)
                outputs[f"state under configuration {number}"] = json.dumps(proxy.admin("/api/v1/state"))
                done = subprocess.run([RAYGUARD, "check", "--config", str(proxy.config)], capture_output=True, text=True, timeout=60)
                assert done.returncode, (number, wrong)
                outputs[f"check of configuration {number}"] = done.stdout + done.stderr
            replace(proxy.config, text)
            proxy.session.popen.send_signal(signal.SIGHUP)
            wait_until("it is well again", lambda: not proxy.admin("/api/v1/state")["config_problem"], 20)
            # Ray dies: errors and an alert; the shared store was never there.
            faulty.kill()
            said += clients_of_every_kind(proxy, proxy.client_port)
            wait_until("an alert is sent", lambda: receiver.taken, 40)
            for path in (
                "/", "/livez", "/readyz", "/metrics", "/openapi.json", "/api/v1/state", "/api/v1/limits", "/api/v1/signals",
                "/api/v1/alerts", "/api/v1/adjustments", "/api/v1/events", "/api/v1/history", "/api/v1/clients", "/api/v1/discovery",
            ):  # fmt: skip
                for token in ({}, {"Authorization": f"Bearer {SECRET['wrongadmin']}"}, {"Authorization": f"Bearer {SECRET['admintoken']}"}):
                    answer = ask(f"http://127.0.0.1:{proxy.admin_port}", "GET", path, host | token)
                    outputs[f"admin {path} {list(token)}"] = f"{answer.headers} {answer.body.decode(errors='replace')}"
            wrong = host | {"Authorization": f"Bearer {SECRET['wrongadmin']}", "Content-Type": "application/json"}
            answer = ask(f"http://127.0.0.1:{proxy.admin_port}", "POST", "/api/v1/freeze", wrong, b'{"why": "x"}')
            assert answer.status in (401, 403), answer.status
            outputs["a wrong token"] = answer.body.decode()
            refused = next((found for text in said if (found := re.search(r"request ([0-9a-f]+-[0-9a-f]+)", text))), None)
            assert refused, "somebody was refused, and told which request it was"
            outputs |= dict(commands(proxy, refused[1]))
            time.sleep(1.5)
        faulty.start()
        receiver.close()
    outputs["the log"] = proxy.log.read_text(errors="replace")
    assert len(outputs["the log"]) > 20_000, "it was at its most talkative"
    outputs["answers"] = "\n".join(said)
    # But for the header that is meant for the receiver.
    others = lambda headers: [(name, value) for name, value in headers if name.lower() != "authorization"]  # noqa: E731
    outputs["alerts"] = "\n".join(f"{path} {others(headers)} {body.decode()}" for _, path, headers, body in receiver.taken)
    outputs["the trace"] = "".join(path.read_bytes().decode(errors="replace") for path in tmp_path.glob("trace*"))
    assert outputs["the trace"]
    for path in proxy.state.rglob("*"):
        if path.is_file():
            outputs[f"state {path.name}"] = path.read_bytes().decode(errors="replace")
    found = []
    for where, text in outputs.items():
        for place, secret in SECRET.items():
            for form in (secret, secret.removeprefix("S3cr3t-"), base64.b64encode(secret.encode()).decode().rstrip("=")[:-2]):
                if form in text:
                    at = text.index(form)
                    found.append(f"{place} in {where}: ...{text[max(0, at - 160) : at + 60]!r}")
                    break
    assert not found, f"{len(found)}:\n" + "\n".join(found[:20])
