"""What Ray's own HTTP server, aiohttp, makes of each shape in tests/smuggling/shapes.tsv.

`python smuggling.py` writes its readings into the table; `test_smuggling.py` checks them.
"""

import asyncio
import re
import sys
from pathlib import Path

from aiohttp import web

TABLE = Path(__file__).resolve().parent.parent / "smuggling/shapes.tsv"
PRIZE = b"GET /prize HTTP/1.1\r\nhost: ray\r\n\r\n"
PRIZE_READ = 'GET /prize ""'
OF_THE_PROXY = ("/api/gcs_healthz", "/api/version", "/api/prometheus/sd")  # what a proxy asks for itself
ESCAPES = {"r": "\r", "n": "\n", "t": "\t"}


def unescape(text):
    """The bytes a row stands for."""
    text = re.sub(r"\{(\d+)\*([^}]*)\}", lambda found: int(found[1]) * found[2], text)
    single = r"\\(?:x([0-9a-f]{2})|([rnt]))"
    return re.sub(single, lambda found: chr(int(found[1], 16)) if found[1] else ESCAPES[found[2]], text).encode("latin-1")


def rows():
    """`(name, proxy, aiohttp, bytes)` of each shape."""
    for line in TABLE.read_text().splitlines():
        if line and not line.startswith("#"):
            name, proxy, reading, text = line.split("\t")
            yield name, proxy, reading, unescape(text)


def shown(body):
    return body.decode("latin-1").replace("\r", "\\r").replace("\n", "\\n")


class Recorder:
    """An aiohttp server as Ray's dashboard runs it, whose one handler writes down what it is handed. Use as an
    asynchronous context; it listens on `port`."""

    async def __aenter__(self):
        self.seen = []
        app = web.Application(client_max_size=100 << 20)  # as ray_constants.DASHBOARD_CLIENT_MAX_SIZE
        app.router.add_route("*", "/{rest:.*}", self.handle)
        # Targets without a leading slash find no route.
        app.middlewares.append(self.catch)
        self.runner = web.AppRunner(app)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0)
        await site.start()
        self.port = self.runner.addresses[0][1]
        return self

    async def __aexit__(self, *_):
        await self.runner.cleanup()

    @web.middleware
    async def catch(self, request, handler):  # noqa: ARG002
        return await self.handle(request)

    async def handle(self, request):
        """A request counts once its body is whole."""
        body = await request.read()
        if request.path in OF_THE_PROXY:
            return web.Response(text="ray")
        # Of a whole URL, what its router looks at, which is no fragment.
        target = re.sub(r"^\w+://[^/?]*", "", request.raw_path).split("#")[0] or "/"
        self.seen.append(f'{request.method} {target} "{shown(body)}"')
        return web.Response(text="ray")

    async def exchange(self, data, port=None, patience=0.1):
        """These bytes, and a prize behind them, to the server or to the proxy at `port`: the requests the server
        handed on, the statuses the client was answered with, and whether it is left waiting."""
        self.seen = []
        reader, writer = await asyncio.open_connection("127.0.0.1", port or self.port)
        answers, is_open = b"", True
        for piece, enough in ((data, b"\r\n\r\n"), (PRIZE, None)):
            try:
                writer.write(piece)
                while is_open and not (enough and enough in answers):
                    more = await asyncio.wait_for(reader.read(65536), patience)
                    answers, is_open = answers + more, bool(more)
            except TimeoutError:
                pass
            except ConnectionError:
                is_open = False
        writer.close()
        return self.seen, re.findall(r"HTTP/1\.[01] (\d{3}) ", answers.decode("latin-1")), is_open

    async def reading(self, data):
        """What the server makes of these bytes, in the table's words."""
        seen, statuses, is_open = await self.exchange(data)
        refusals = [status for status in statuses if int(status) >= 400]
        waits = is_open and not refusals and PRIZE_READ not in seen
        return "; ".join(seen + refusals + ["..."] * waits)


async def record():
    lines = []
    async with Recorder() as recorder:
        for line in TABLE.read_text().splitlines():
            if line and not line.startswith("#"):
                name, proxy, _, text = line.split("\t")
                line = "\t".join([name, proxy, await recorder.reading(unescape(text)), text])
            lines.append(line)
    TABLE.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    if sys.argv[1:]:
        sys.exit(__doc__)
    asyncio.run(record())
