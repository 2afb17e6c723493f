"""People who ask all the time, and remember what became of it."""

import http.client
import threading
import time
from urllib.parse import urlsplit


class Clients:
    """`count` threads, each on a kept connection, each asking `path` every `pause_s`. Use as a context.

    They come from `address`, and post `body`, where one is given. Nothing is tried again: what failed, failed. An exchange is `(begun, took_s, fate)`, its fate a
    status or the name of what went wrong.
    """

    def __init__(
        self, url, path="/api/version", count=4, pause_s=0.02, timeout_s=10, headers=None, address=None, body=None
    ):
        self.url, self.path, self.pause_s, self.timeout_s = url, path, pause_s, timeout_s
        self.headers, self.body = headers or {}, body
        self.source = address and (address, 0)
        self.exchanges = []
        self.over = threading.Event()
        self.threads = [threading.Thread(target=self.ask, daemon=True) for _ in range(count)]

    def ask(self):
        parts, connection = urlsplit(self.url), None
        while not self.over.is_set():
            begun = time.monotonic()
            try:
                if connection is None:
                    connection = http.client.HTTPConnection(
                        parts.hostname, parts.port, timeout=self.timeout_s, source_address=self.source
                    )
                connection.request("POST" if self.body else "GET", self.path, self.body, self.headers)
                answer = connection.getresponse()
                answer.read()
                fate = answer.status
                if answer.will_close:
                    connection.close()
                    connection = None
            except (OSError, http.client.HTTPException) as problem:
                fate = type(problem).__name__
                connection.close()
                connection = None
            self.exchanges.append((begun, time.monotonic() - begun, fate))
            self.over.wait(self.pause_s)

    def fates(self, since=0.0, until=float("inf")):
        """How often each fate befell what began between the two moments."""
        counts = {}
        for begun, _, fate in list(self.exchanges):
            if since <= begun < until:
                counts[fate] = counts.get(fate, 0) + 1
        return counts

    def failed(self, since=0.0, until=float("inf")):
        return {fate: count for fate, count in self.fates(since, until).items() if fate != 200}

    def served(self):
        return sum(1 for _, _, fate in list(self.exchanges) if fate == 200)

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        for thread in self.threads:
            thread.join(self.timeout_s + 5)
