"""A real Ray head of our own: ports of its choice, a private directory, quick metrics.

Nothing here uses `ray stop`, which ends every Ray on the machine: `ray start --block` leads a
session of its own and ends what it started, and what is left over is known by the private
directory in its command line.
"""

import fcntl
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

QUICK_METRICS = {
    "RAY_metrics_report_interval_ms": "1000",
    "REPORTER_UPDATE_INTERVAL_MS": "1000",
    "METRICS_RECORD_INTERVAL_S": "1",
}
BIN = Path(sys.executable).parent


# Below those the system gives to connections, which would take one between the question and its use.
PORTS = range(30000, 32768)
UNASKED = random.sample(PORTS, len(PORTS))
CLAIMS = open(Path(tempfile.gettempdir(), f"rayguard-test-ports-{os.getuid()}"), "wb")  # noqa: SIM115


def free_ports(count):
    """Ports that are free now, and given to no other caller here: each is claimed, until this process ends,
    by a lock on its byte of a file."""
    ports = []
    while UNASKED and len(ports) < count:
        port = UNASKED.pop()
        try:
            fcntl.lockf(CLAIMS, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
            with socket.socket() as one:
                one.bind(("127.0.0.1", port))
        except OSError:
            continue
        ports.append(port)
    if len(ports) < count:
        raise RuntimeError(f"fewer than {count} free ports between {PORTS.start} and {PORTS.stop - 1}")
    return ports


def wait_until(what, check, seconds=30.0, pause=0.1):
    """Waits until `check()` is true-ish and returns that; fails with `what` when time is up."""
    end = time.monotonic() + seconds
    last = None
    while time.monotonic() < end:
        try:
            if found := check():
                return found
        except (OSError, ValueError) as problem:
            last = problem
        time.sleep(pause)
    raise TimeoutError(f"{what}: not within {seconds} s ({last})")


def answers(url, timeout=2.0):
    with urllib.request.urlopen(url, timeout=timeout) as answer:
        return answer.status == 200


class Session:
    """A program that leads a session of its own, and its log."""

    def __init__(self, command, log, env=None):
        self.log = Path(log)
        with open(self.log, "ab") as out:
            self.popen = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=env, start_new_session=True
            )

    def check(self):
        if self.popen.poll() is not None:
            raise RuntimeError(
                f"{self.popen.args[0]} ended with {self.popen.returncode}:\n{self.log.read_text()[-3000:]}"
            )

    def signal(self, number):
        try:
            os.killpg(self.popen.pid, number)
        except ProcessLookupError:
            pass

    def stop(self, patience=15):
        # The leader alone: `ray start --block` then ends what it started, in order.
        if self.popen.poll() is None:
            self.popen.terminate()
        try:
            self.popen.wait(patience)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGKILL)
            self.popen.wait()


class Head:
    """A head, from start to stop. Use as a context."""

    def __init__(self, token=None, cpus=2, env=None, quick_metrics=True, bin=BIN, ports=None):
        self.bin = bin  # where this Ray's commands are
        self.directory = Path(tempfile.mkdtemp(prefix="rg", dir="/tmp"))  # unix sockets need a short path
        names = ["gcs", "dashboard", "metrics", "client", "agent", "autoscaler_metrics", "dashboard_metrics"]
        self.ports = ports or dict(zip(names, free_ports(len(names))))  # another's, once that is gone
        self.token = token
        self.cpus = cpus
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_DISABLE_IMPORT_WARNING": "1",
            "AUTOSCALER_METRIC_PORT": str(self.ports["autoscaler_metrics"]),
            "DASHBOARD_METRIC_PORT": str(self.ports["dashboard_metrics"]),
            "PATH": f"{bin}:{os.environ['PATH']}",
            **(QUICK_METRICS if quick_metrics else {}),
            **(env or {}),
        }
        if token:
            path = self.directory / "token"
            path.write_text(token)
            path.chmod(0o600)
            self.env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(path)}
        else:
            self.env |= {"RAY_AUTH_MODE": "disabled"}
        self.arguments = []  # more of `ray start`'s own
        self.session = None

    @property
    def url(self):
        return f"http://127.0.0.1:{self.ports['dashboard']}"

    @property
    def metrics_targets(self):
        return [f"127.0.0.1:{self.ports[name]}" for name in ("metrics", "autoscaler_metrics", "dashboard_metrics")]

    def __enter__(self):
        port = self.ports
        command = [
            str(self.bin / "ray"), "start", "--head", "--block", "--disable-usage-stats",
            "--node-ip-address=127.0.0.1",
            f"--num-cpus={self.cpus}",
            "--object-store-memory=200000000",
            f"--temp-dir={self.directory}",
            f"--port={port['gcs']}",
            "--dashboard-host=127.0.0.1",
            f"--dashboard-port={port['dashboard']}",
            f"--dashboard-agent-listen-port={port['agent']}",
            f"--metrics-export-port={port['metrics']}",
            f"--ray-client-server-port={port['client']}",
            *self.arguments,
        ]  # fmt: skip
        self.session = Session(command, self.directory / "start.log", self.env)
        try:
            wait_until("the head's dashboard", self.is_up, 90, 0.25)
        except BaseException:
            self.__exit__()
            raise
        return self

    def is_up(self):
        self.session.check()
        return answers(f"{self.url}/api/gcs_healthz") and answers(f"http://{self.metrics_targets[0]}/metrics", 5)

    def __exit__(self, *_):
        self.session.stop()
        mark = str(self.directory)
        for number in (signal.SIGTERM, signal.SIGKILL):
            left = [pid for pid, line in command_lines() if mark in line]
            for pid in left:
                try:
                    os.kill(pid, number)
                except ProcessLookupError:
                    pass
            if left:
                time.sleep(1.0)
        shutil.rmtree(self.directory, ignore_errors=True)

    def processes(self):
        """`{name: pid}` of the head's own processes, for their CPU and memory."""
        mark = str(self.directory)
        return {line.split()[0]: pid for pid, line in command_lines() if mark in line}

    def kill(self):
        """Every process of the head, at once and without a word."""
        for pid, line in command_lines():
            if str(self.directory) in line:
                os.kill(pid, signal.SIGKILL)
        self.session.popen.wait()

    def usage(self):
        """CPU seconds used by all processes of the head, and their resident MiB."""
        cpu = rss = 0
        for pid, line in command_lines():
            if str(self.directory) in line or line.startswith("ray::"):
                try:
                    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
                except OSError:
                    continue
                cpu += int(fields[11]) + int(fields[12])
                rss += int(fields[21])
        return cpu / os.sysconf("SC_CLK_TCK"), rss * os.sysconf("SC_PAGE_SIZE") / 2**20

    def run(self, *command, address=None, timeout=90, check=True, env=None):
        """Runs one of Ray's commands as a user would, against `address`."""
        environment = {**self.env, **(env or {})}
        if address:
            environment["RAY_API_SERVER_ADDRESS"] = address
            environment["RAY_ADDRESS"] = address
        done = subprocess.run(
            [str(self.bin / command[0]), *command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            timeout=timeout,
        )
        if check and done.returncode:
            raise AssertionError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}")
        return done.stdout


def command_lines():
    """Process ids and command lines on this machine."""
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                line = Path(f"/proc/{entry}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if line:
                yield int(entry), line


if __name__ == "__main__":  # a head to look at by hand: python head.py
    with Head() as head:
        print(json.dumps({"url": head.url, **head.ports, "directory": str(head.directory)}), flush=True)
        try:
            signal.pause()
        except KeyboardInterrupt:
            pass
