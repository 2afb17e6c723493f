"""Ray Serve on 8000 behind the proxy: an application's own routes, its streams, its sockets, its limits."""

import base64
import os
import socket
import threading
import time
from urllib.parse import urlsplit

import pytest
from clients import Clients
from proxy import Proxy, ask
from head import Head, free_ports, wait_until

APPLICATION = """
import asyncio, ray
from fastapi import FastAPI, Request, WebSocket
from fastapi.responses import StreamingResponse
from ray import serve

app = FastAPI()

@serve.deployment(max_ongoing_requests=100, ray_actor_options={"num_cpus": 0.1})
@serve.ingress(app)
class Application:
    @app.post("/predict")
    async def predict(self, request: Request, seconds: float = 0.0):
        await asyncio.sleep(seconds)
        return {"bytes": len(await request.body()), "who": request.headers.get("x-forwarded-for", "")}

    @app.get("/rank")
    async def rank(self):
        await asyncio.sleep(0.15)
        return "ranked"

    @app.get("/tokens")
    async def tokens(self):
        async def one_by_one():
            for number in range(20):
                yield f"token {number}\\n"
                await asyncio.sleep(0.05)
        return StreamingResponse(one_by_one(), media_type="text/plain")

    @app.websocket("/talk")
    async def talk(self, websocket: WebSocket):
        await websocket.accept()
        while True:
            await websocket.send_text((await websocket.receive_text()).upper())

ray.init(address="auto", namespace="serve")
serve.start(http_options={"host": "127.0.0.1", "port": PORT})
serve.run(Application.bind(), route_prefix="/app")
"""

CLASSES = """
[class.predict]
module = "Serve"
in_flight = 2
queue = { len = 0 }

[[route]]
method = "POST"
path = "/app/predict"
class = "predict"

[class.rank]
module = "Serve"
in_flight = 3

[[route]]
method = "GET"
path = "/app/rank"
class = "rank"
"""


@pytest.fixture(scope="module")
def serve():
    """A head of its own on which the application runs: the head, and Serve's URL."""
    with Head(cpus=4) as head:
        (port,) = free_ports(1)
        script = head.directory / "application.py"
        script.write_text(APPLICATION.replace("PORT", str(port)))
        head.run("python", str(script), address=f"127.0.0.1:{head.ports['gcs']}", timeout=180)
        url = f"http://127.0.0.1:{port}"
        wait_until("the application", lambda: ask(url, path="/-/healthz").status == 200, 60)
        yield head, url


@pytest.fixture(scope="module")
def proxy(serve):
    """Where the application is reached through the proxy."""
    head, url = serve
    (port,) = free_ports(1)
    listener = f'[[listen]]\naddress = "127.0.0.1:{port}"\nkind = "serve"\nupstream = "{url}"\n'
    with Proxy(head, listener + CLASSES):
        yield f"http://127.0.0.1:{port}"


def connect(url):
    parts = urlsplit(url)
    return socket.create_connection((parts.hostname, parts.port), timeout=20)


def test_an_application_answers_as_it_does_without_the_proxy(proxy, serve):
    _, direct = serve
    body = os.urandom(3 * 2**20)
    for url in (proxy, direct):
        answer = ask(url, "POST", "/app/predict", body=body)
        assert (answer.status, answer.json()["bytes"]) == (200, len(body))
    for path in ("/-/healthz", "/-/routes", "/app/openapi.json", "/app/nothing", "/nowhere"):
        said, expected = ask(proxy, path=path), ask(direct, path=path)
        assert (said.status, said.body) == (expected.status, expected.body), path


def test_tokens_pass_as_they_are_made(proxy):
    connection = connect(proxy)
    connection.sendall(b"GET /app/tokens HTTP/1.1\r\nhost: serve\r\nconnection: close\r\n\r\n")
    pieces = []
    while got := connection.recv(65536):
        pieces.append((time.monotonic(), got))
    assert b"".join(piece for _, piece in pieces).count(b"token") == 20
    assert pieces[-1][0] - pieces[0][0] > 0.5, "they came in one piece, at the end"


def test_a_socket_talks_both_ways(proxy):
    connection = connect(proxy)
    key = base64.b64encode(os.urandom(16)).decode()
    connection.sendall(
        f"GET /app/talk HTTP/1.1\r\nhost: serve\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
        f"sec-websocket-version: 13\r\nsec-websocket-key: {key}\r\n\r\n".encode()
    )
    head = b""
    while b"\r\n\r\n" not in head:
        head += connection.recv(1)
    assert head.startswith(b"HTTP/1.1 101")
    connection.sendall(b"\x81\x85\0\0\0\0hello")  # one text frame, masked with zeros
    assert connection.recv(7) == b"\x81\x05HELLO"
    connection.close()


def test_a_class_of_ones_own_is_held_to_its_limit_and_no_other_is(proxy):
    answers = []

    def predict():
        answers.append(ask(proxy, "POST", "/app/predict?seconds=2", body=b"x"))

    threads = [threading.Thread(target=predict) for _ in range(8)]
    for thread in threads:
        thread.start()
    time.sleep(1.0)
    assert ask(proxy, path="/-/healthz").status == 200
    assert ask(proxy, path="/app/tokens").status == 200
    for thread in threads:
        thread.join(20)
    statuses = sorted(answer.status for answer in answers)
    assert statuses[:2] == [200, 200] and set(statuses[2:]) <= {429, 503}, statuses
    refused = next(answer for answer in answers if answer.status != 200)
    assert refused.header("x-rayguard-reason") and int(refused.header("retry-after")) >= 1, refused.headers
    assert ask(proxy, "POST", "/app/predict", body=b"x").status == 200


def test_who_asks_in_twenty_places_gets_no_more_than_who_asks_in_three(proxy):
    """Replicas work in parallel: what is let in together is answered together, and everybody's turn counts alike."""
    crowd = Clients(proxy, path="/app/rank", count=20, pause_s=0.0)
    few = Clients(proxy, path="/app/rank", count=3, pause_s=0.0, address="127.0.0.2")
    with crowd, few:
        time.sleep(3)
        before = crowd.served(), few.served()
        time.sleep(12)
        after = crowd.served(), few.served()
    got = [late - early for early, late in zip(before, after)]
    assert sum(got) > 100, f"{got}: the three places stand empty"
    assert 0.8 < got[1] / got[0] < 1.25, f"{got} instead of half each"
