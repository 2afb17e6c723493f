"""A head that can be made ill: an HTTP server in a process of its own, and its metrics page.

What the real head cannot be talked into (an answer that breaks off, a metrics page that lies, ten
gigabytes of log) this one does at a word. It is a process, so that it can be frozen and killed as Ray is.

    python faulty.py PORT DIRECTORY     serves; obeys the words in DIRECTORY/mood, and is what DIRECTORY/version says
"""

import asyncio
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# Linux: a socket that is being moved elsewhere closes in silence. Takes CAP_NET_ADMIN.
TCP_REPAIR = 19

GAUGES = """# HELP ray_component_cpu_percentage CPU usage of a component, in percent of one core
# TYPE ray_component_cpu_percentage gauge
ray_component_cpu_percentage{{Component="gcs_server",IsHeadNode="true",ip="127.0.0.1"}} {cpu}
# HELP ray_node_cpu_count Total CPUs available on a ray node
# TYPE ray_node_cpu_count gauge
ray_node_cpu_count{{IsHeadNode="true",ip="127.0.0.1"}} 1
# HELP ray_tasks Current number of tasks currently in a particular state.
# TYPE ray_tasks gauge
ray_tasks{{State="PENDING_NODE_ASSIGNMENT",Name="f"}} {pending}
"""


MEBIBYTE = b"x" * 2**20


def may_vanish():
    with socket.socket() as one:
        try:
            one.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 0)
        except OSError:
            return False
    return True


def page(mood):
    """The metrics page: its status, its type and its bytes."""
    text = "text/plain; version=0.0.4"
    if mood == "html":
        return 200, "text/html", b"<html><body>502 Bad Gateway</body></html>"
    if mood == "down":
        return 503, text, b"gone"
    if mood == "huge":
        return 200, text, b"# HELP padding nothing\n" * (50 * 2**20 // 23)
    if mood == "torn":
        return 200, text, GAUGES.format(cpu=10, pending=0).encode()[:-40] + b'ray_tasks{State="PEND'
    cpu, pending = {"negative": (-300, -5), "nan": ("NaN", "NaN"), "absurd": ("1e308", "+Inf")}.get(mood, (10, 0))
    # A reading that never moves would be taken for a frozen exporter.
    wobble = 0 if isinstance(cpu, str) else time.time() % 1
    return 200, text, GAUGES.format(cpu=cpu if isinstance(cpu, str) else cpu + wobble, pending=pending).encode()


async def serve(port, directory):
    open_lines = set()

    async def vanish():
        """At the word, every line is gone without a word: neither FIN nor RST, as when a host or a network fails."""
        while True:
            await asyncio.sleep(0.05)
            if (directory / "mood").read_text() == "vanish" and open_lines:
                for writer in list(open_lines):
                    line = writer.get_extra_info("socket")
                    line.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
                    writer.transport.abort()
                open_lines.clear()
                (directory / "vanished").write_text("yes")

    async def converse(reader, writer):
        open_lines.add(writer)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    (int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0
                )  # fmt: skip
                while length:
                    length -= len(await reader.read(min(length, 2**16)))
                    if reader.at_eof():
                        return
                path = head.split(b" ")[1].decode()
                mood = (directory / "mood").read_text()
                version = (directory / "version").read_text()
                status, kind, body = 200, "application/json", b'{"result": true, "ray_version": "%s"}' % version.encode()
                if path == "/metrics":
                    if mood == "slow":
                        await asyncio.sleep(30)
                    status, kind, body = page(mood)
                elif path == "/api/gcs_healthz":
                    body = b"success"
                elif "torn" in path:
                    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nonly so much")
                    await writer.drain()
                    writer.transport.abort()
                    return
                elif "mebibytes=" in path:
                    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ntransfer-encoding: chunked\r\n\r\n")
                    for _ in range(int(path.split("mebibytes=")[1])):
                        writer.write(b"100000\r\n" + MEBIBYTE + b"\r\n")
                        await writer.drain()
                    writer.write(b"0\r\n\r\n")
                    await writer.drain()
                    continue
                else:
                    await asyncio.sleep(0.01)
                writer.write(
                    b"HTTP/1.1 %d X\r\ncontent-type: %s\r\ncontent-length: %d\r\n\r\n" % (status, kind.encode(), len(body))
                    + body
                )
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, IndexError):  # it left, or speaks something else
            pass
        finally:
            open_lines.discard(writer)
            writer.close()

    server = await asyncio.start_server(converse, "127.0.0.1", port, backlog=1024)
    async with server:
        await asyncio.gather(vanish(), server.serve_forever())


class FaultyHead:
    """Looks to [`Proxy`] like a head. Use as a context."""

    def __init__(self):
        from head import free_ports

        self.directory = Path(tempfile.mkdtemp(prefix="faulty"))
        (self.port,) = free_ports(1)
        self.process = None
        self.feel("well")
        self.be("2.60.0")

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    @property
    def metrics(self):
        """The table that lets the proxy read this page, and nothing else."""
        return f'[metrics]\ndiscovery_file = "off"\ndiscover = false\ntargets = ["127.0.0.1:{self.port}"]\ninterval = "1s"\ntimeout = "900ms"\n'

    def feel(self, mood):
        self.write("mood", mood)

    def be(self, version):
        self.write("version", version)

    def write(self, name, word):
        new = self.directory / "new"
        new.write_text(word)
        new.rename(self.directory / name)

    def start(self):
        from head import answers, wait_until

        self.process = subprocess.Popen([sys.executable, __file__, str(self.port), str(self.directory)])
        wait_until("the faulty head", lambda: answers(f"{self.url}/api/gcs_healthz"), 20)

    def signal(self, number):
        self.process.send_signal(number)

    def kill(self):
        self.signal(signal.SIGKILL)
        self.process.wait()

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.kill()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), Path(sys.argv[2])))
