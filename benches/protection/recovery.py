"""How long a head is ill after a flood, and how deep its backlog of submissions gets.

Both ask the head itself, past whatever stands in front of it, and both ask little: the first only once
the flood has ended, the second every two seconds.
"""

import json
import threading
import time
import urllib.error
import urllib.request

PATHS = ("/api/version", "/api/jobs/{job}", "/api/v0/actors?limit=100")
HEALTHY_S = 0.25
IN_A_ROW = 4
PATIENCE_S = 90


class Recovery(threading.Thread):
    """From the flood's end until the first of four rounds of questions in a row that are answered in time."""

    def __init__(self, head, job, end_s):
        super().__init__(daemon=True)
        self.urls = [f"{head.url}{path.format(job=job)}" for path in PATHS]
        self.end = time.monotonic() + end_s
        self.seconds = None

    def run(self):
        time.sleep(max(0.0, self.end - time.monotonic()))
        good, since = 0, None
        while time.monotonic() < self.end + PATIENCE_S:
            began = time.monotonic()
            if all(self.answers(url) for url in self.urls):
                good, since = good + 1, since or began
                if good == IN_A_ROW:
                    self.seconds = since - self.end
                    return
            else:
                good, since = 0, None
            time.sleep(max(0.0, 0.25 - (time.monotonic() - began)))

    @staticmethod
    def answers(url):
        began = time.monotonic()
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                answer.read()
        except OSError:
            return False
        return time.monotonic() - began < HEALTHY_S


class Backlog(threading.Thread):
    """The most submissions that waited at once to become a process, by the head's own list."""

    def __init__(self, head):
        super().__init__(daemon=True)
        self.url = f"{head.url}/api/jobs/"
        self.deepest = 0
        self.series = []
        self.ended = threading.Event()

    def run(self):
        began = time.monotonic()
        while not self.ended.wait(2):
            try:
                with urllib.request.urlopen(self.url, timeout=20) as answer:
                    waiting = sum(job["status"] == "PENDING" for job in json.load(answer))
            except (OSError, ValueError):
                continue
            self.series.append((round(time.monotonic() - began, 1), waiting))
            self.deepest = max(self.deepest, waiting)
