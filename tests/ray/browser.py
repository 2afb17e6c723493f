"""A headless Chromium, driven over its DevTools protocol: enough to see what a page asks for."""

import asyncio
import shutil
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
from head import Session, wait_until

PROGRAM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)


class Visit:
    """What came of a visit: the answers by method and path, the failures, and the page's text."""

    def __init__(self):
        self.answers = {}
        self.failures = []
        self.text = ""


def visit(url, pages, seconds_each):
    """Opens `url` + each of `pages` (fragments) one after another in one fresh browser."""
    directory = Path(tempfile.mkdtemp(prefix="chromium"))
    session = Session(
        [
            PROGRAM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run",
            "--remote-debugging-port=0", f"--user-data-dir={directory}", "about:blank",
        ],
        directory / "chromium.log",
    )  # fmt: skip
    try:
        port_file = directory / "DevToolsActivePort"
        wait_until("Chromium", lambda: port_file.exists() and port_file.read_text().split("\n")[1], 30)
        port = port_file.read_text().split("\n")[0]
        return asyncio.run(drive(port, url, pages, seconds_each))
    finally:
        session.stop()
        shutil.rmtree(directory, ignore_errors=True)


async def drive(port, url, pages, seconds_each):
    seen, methods, numbers = Visit(), {}, iter(range(1, 10**6))
    origin = urlsplit(url).netloc
    async with aiohttp.ClientSession() as http:
        async with http.get(f"http://127.0.0.1:{port}/json/list") as listed:
            target = next(entry for entry in await listed.json() if entry["type"] == "page")
        async with http.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as tools:

            async def call(method, **params):
                number = next(numbers)
                await tools.send_json({"id": number, "method": method, "params": params})
                async for message in tools:
                    message = message.json()
                    if message.get("id") == number:
                        return message.get("result", {})
                    note(message)

            def note(message):
                params = message.get("params", {})
                match message.get("method"):
                    case "Network.requestWillBeSent":
                        asked = params["request"]
                        methods[params["requestId"]] = (asked["method"], asked["url"])
                    case "Network.responseReceived":
                        method, _ = methods.get(params["requestId"], ("GET", ""))
                        parts = urlsplit(params["response"]["url"])
                        if parts.netloc == origin:
                            key = (method, parts.path + (f"?{parts.query}" if parts.query else ""))
                            seen.answers.setdefault(key, set()).add(params["response"]["status"])
                    case "Network.loadingFailed":
                        if not params.get("canceled"):
                            seen.failures.append((methods.get(params["requestId"]), params["errorText"]))

            await call("Network.enable")
            await call("Page.enable")
            for page in pages:
                await call("Page.navigate", url=url + page)
                end = asyncio.get_running_loop().time() + seconds_each
                while (left := end - asyncio.get_running_loop().time()) > 0:
                    try:
                        note((await tools.receive(timeout=left)).json())
                    except asyncio.TimeoutError:
                        break
                told = await call("Runtime.evaluate", expression="document.body.innerText")
                seen.text += told["result"].get("value", "") + "\n"
    return seen
