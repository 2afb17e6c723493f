"""Every client that follows a job's log gets every line, in order and once, and a clean Close, however slowly it reads:
through Ray's SDK, Ray's command line and a bare WebSocket; and Ray has a tail or two of it, not one for each.

The log is longer than the proxy keeps of a tail and the system keeps for a connection, so a slow follower falls behind.
"""

import asyncio
import base64
import os
import re
import socket
import subprocess
import threading
import time

import pytest
from aiohttp.http import SERVER_SOFTWARE
from proxy import Proxy, ask
from head import BIN, wait_until

LINES, FIRST = 20_000, 1_000
LINE = "line {:05} " + "." * 600
WHOLE = [LINE.format(number) for number in range(LINES)]
JOB = "raysubmit_followed"
# Its pace is the test's: the first lines, then the others over some seconds, then the last when all have had them.
SCRIPT = f"""
import sys, time
from pathlib import Path
on, end = map(Path, sys.argv[1:])
for number in range({LINES}):
    if number == {FIRST}:
        while not on.exists(): time.sleep(0.05)
    if number % 2000 == 0: time.sleep(0.3)
    print({LINE!r}.format(number), flush=number % 100 == 99)
while not end.exists(): time.sleep(0.05)
print("the last line", flush=True)
"""
CLEAN = b"\x03\xe8"  # 1000


class Log:
    """What a follower has had."""

    def __init__(self):
        self.pieces, self.close = [], None

    @property
    def text(self):
        return "".join(self.pieces)

    def lines(self):
        return [line for line in self.text.splitlines() if line.startswith(("line ", "the last "))]

    def has(self, count):
        """Whether so many lines have come, and no more are to come yet."""
        return LINE.format(count - 1) in "".join(self.pieces[-20:])


class Crawler(threading.Thread):
    """A WebSocket as it is on the wire: little room on its way, and a pause between reads."""

    def __init__(self, port, log, pause_s):
        super().__init__(daemon=True)
        self.log, self.pause_s, self.buffer = log, pause_s, b""
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 << 10)
        self.socket.settimeout(60)
        self.socket.connect(("127.0.0.1", port))
        key = base64.b64encode(os.urandom(16)).decode()
        # As the SDK asks: a client that asks in another way has a tail of its own.
        self.socket.sendall(
            f"GET /api/jobs/{JOB}/logs/tail HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
            f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n"
            f"Accept: */*\r\nAccept-Encoding: gzip, deflate\r\nUser-Agent: {SERVER_SOFTWARE}\r\n\r\n".encode()
        )
        while b"\r\n\r\n" not in self.buffer:
            self.read()
        answer, self.buffer = self.buffer.split(b"\r\n\r\n", 1)
        assert answer.startswith(b"HTTP/1.1 101"), answer

    def read(self):
        got = self.socket.recv(16 << 10)
        if not got:
            raise EOFError("no Close came")
        self.buffer += got

    def exactly(self, count):
        while len(self.buffer) < count:
            time.sleep(self.pause_s)
            self.read()
        taken, self.buffer = self.buffer[:count], self.buffer[count:]
        return taken

    def run(self):
        message = b""
        while True:
            first, length = self.exactly(2)
            if length > 125:
                length = int.from_bytes(self.exactly(2 if length == 126 else 8), "big")
            payload = self.exactly(length)
            if first & 15 == 8:
                self.log.close = payload
                self.socket.sendall(b"\x88\x80\0\0\0\0")
                return
            message += payload
            if first & 0x80:
                self.log.pieces.append(message.decode())
                message = b""


class Command(threading.Thread):
    """`ray job logs --follow`, and how it ended."""

    def __init__(self, head, url, log):
        super().__init__(daemon=True)
        self.log, self.status = log, None
        self.popen = subprocess.Popen(
            [BIN / "ray", "job", "logs", "--follow", "--address", url, JOB],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=head.env,
        )  # fmt: skip

    def run(self):
        for line in self.popen.stdout:
            self.log.pieces.append(line)
        self.status = self.popen.wait()


async def follow(client, log, pause_s=0.0):
    """As Ray's SDK does; it raises where the connection ends without a Close."""
    async for lines in client.tail_job_logs(JOB):
        log.pieces.append(lines)
        if pause_s:
            await asyncio.sleep(pause_s)
    log.close = CLEAN


@pytest.fixture
def client(head, monkeypatch):
    for name, value in head.env.items():
        if name.startswith("RAY_"):
            monkeypatch.setenv(name, value)
    from ray.job_submission import JobSubmissionClient

    with Proxy(head) as proxy:
        client = JobSubmissionClient(proxy.url)
        client.proxy = proxy
        yield client


async def until(what, check, seconds=60):
    await asyncio.get_running_loop().run_in_executor(None, wait_until, what, check, seconds)


def tails(proxy):
    """How many tails Ray has of the proxy, counted as it holds them."""
    page = ask(f"http://127.0.0.1:{proxy.admin_port}", path="/metrics").body.decode()
    return float(re.search(r'rayguard_in_flight\{class="log-tail"[^}]*\} (\S+)', page)[1])


def test_every_follower_gets_every_line_once_and_a_clean_close_whatever_its_pace(head, client, tmp_path):
    proxy = client.proxy
    on, end, script = tmp_path / "on", tmp_path / "end", tmp_path / "numbered.py"
    script.write_text(SCRIPT)
    client.submit_job(entrypoint=f"python {script} {on} {end}", submission_id=JOB)
    logs = {who: Log() for who in ("eager", "second", "slow", "late", "command", "crawler", "after")}
    counts, counts_after = [], []

    async def all_of_them():
        tasks = [
            asyncio.ensure_future(follow(client, logs[who], pause_s))
            for who, pause_s in (("eager", 0), ("second", 0), ("slow", 0.004))
        ]
        command = Command(head, proxy.url, logs["command"])
        command.start()
        await until("the first lines", lambda: all(logs[who].has(FIRST) for who in ("eager", "second", "slow")))
        tasks.append(asyncio.ensure_future(follow(client, logs["late"])))
        crawler = await asyncio.get_running_loop().run_in_executor(None, Crawler, proxy.port, logs["crawler"], 0.04)
        crawler.start()
        await until("the first lines again", lambda: all(logs[who].has(FIRST) for who in ("late", "command", "crawler")))
        assert tails(proxy) == 1, "no follower has fallen behind yet"
        on.touch()
        early = [logs[who] for who in logs if who != "after"]

        def all_have_them():
            counts.append(tails(proxy))
            return all(log.has(LINES) for log in early)

        await until("the lines of a follower that never waits", lambda: logs["eager"].has(LINES))
        crawler.pause_s = 0.004
        await until("the lines", all_have_them)
        tasks.append(asyncio.ensure_future(follow(client, logs["after"])))
        await until("the lines once more", lambda: logs["after"].has(LINES))
        counts_after.append(tails(proxy))
        end.touch()
        await asyncio.wait_for(asyncio.gather(*tasks), 30)  # raises what a follower raised
        for thread in (command, crawler):
            await asyncio.get_running_loop().run_in_executor(None, thread.join, 30)
        return command.status

    assert asyncio.run(all_of_them()) == 0
    for who, log in logs.items():
        assert [*WHOLE, "the last line"] == log.lines(), who
    # The quick ones share one, all that are slower another.
    assert max(counts) == 2
    assert max(counts_after) <= 3, "who comes when the beginning is gone reads it anew"
    assert "succeeded" in logs["command"].text
    # A Close is what it is without the proxy.
    direct = Log()
    crawler = Crawler(head.ports["dashboard"], direct, 0)
    crawler.run()
    assert logs["crawler"].close == direct.close == CLEAN
    assert logs["crawler"].text == direct.text == client.get_job_logs(JOB)
