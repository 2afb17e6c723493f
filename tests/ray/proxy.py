"""rayguard in front of a head, started and stopped by the tests."""

import http.client
import json
import os
import subprocess
import tempfile
import tomllib
from pathlib import Path
from urllib.parse import urlsplit

from head import Session, answers, free_ports, wait_until

ROOT = Path(__file__).resolve().parent.parent.parent
RAYGUARD = os.environ.get("RAYGUARD", str(ROOT / "target/release/rayguard"))

# Headers that belong to one connection or one moment, and those a proxy may add.
OF_THE_MOMENT = {"date", "connection", "keep-alive", "transfer-encoding", "content-length", "server"}


class Proxy:
    """`rayguard run` before `head`, at shipped defaults but for what `tables` says. Use as a context."""

    def __init__(self, head, tables="", args=(), ray_client=False, env=None, state=None):
        self.head = head
        self.directory = Path(tempfile.mkdtemp(prefix="proxy"))
        self.state = state or self.directory / "state"  # another life may go on where one ended
        self.port, self.admin_port, self.client_port = free_ports(3)
        self.log = self.directory / "rayguard.log"
        self.config = self.directory / "rayguard.toml"
        listeners = [("dashboard", self.port, head.url)]
        if ray_client:
            listeners.append(("ray-client", self.client_port, f"http://127.0.0.1:{head.ports['client']}"))
        self.config.write_text(
            f'upstream = "{head.url}"\nstate_dir = "{self.state}"\n'
            + "".join(
                f'[[listen]]\naddress = "127.0.0.1:{port}"\nkind = "{kind}"\nupstream = "{upstream}"\n'
                for kind, port, upstream in listeners
            )
            + f'[admin]\nlisten = "127.0.0.1:{self.admin_port}"\n'
            # What the head itself says of its metrics, and nothing that another Ray on this machine left.
            + ("" if "[metrics]" in tables else '[metrics]\ndiscovery_file = "off"\n')
            + tables
        )
        self.command = [RAYGUARD, "run", "--config", str(self.config), *args]
        self.env = env or {}
        self.session = None

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def admin(self, path, **words):
        """What the operator's listener answers; changes something when there are words for it."""
        body = json.dumps(words).encode() if words else None
        headers = {"Host": f"127.0.0.1:{self.admin_port}", "Content-Type": "application/json"}
        answer = ask(f"http://127.0.0.1:{self.admin_port}", "POST" if words else "GET", path, headers, body)
        assert answer.status < 300, (answer.status, answer.body)
        return answer.json()

    def limits(self):
        """`{(class, kind): row}` of every limit."""
        return {(row["class"], row["limit"]): row for row in self.admin("/api/v1/limits")["limits"]}

    def status(self, field):
        """One number of the program's own `/proc/PID/status`, in KiB where it is memory."""
        for line in Path(f"/proc/{self.session.popen.pid}/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1])
        raise KeyError(field)

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.session.popen.pid}/fd"))

    def records(self, event=None):
        """The adjustment log so far, in order; of one kind when named."""
        lines = []
        for path in sorted((self.state / "adjustment-log").glob("*")):
            for line in path.read_text().splitlines():
                try:
                    lines.append(json.loads(line))
                except ValueError:  # the last line may be half written
                    continue
        return [line for line in lines if event is None or line.get("event") == event]

    def __enter__(self):
        env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self.session = Session(self.command, self.log, env | self.env)
        try:
            wait_until("the proxy", self.is_up, 20)
        except BaseException:
            self.__exit__()
            raise
        return self

    def is_up(self):
        self.session.check()
        return answers(f"{self.url}/api/gcs_healthz")

    def __exit__(self, *_):
        self.session.stop()


class Load:
    """`rayguard load` with a plan, running beside a test."""

    def __init__(self, target, plan):
        self.path = Path(tempfile.mkdtemp(prefix="load")) / "plan.toml"
        self.path.write_text(plan)
        self.popen = subprocess.Popen(
            [RAYGUARD, "load", str(self.path), "--target", target],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def report(self):
        patience = tomllib.loads(self.path.read_text())["duration_s"] + 120
        out, err = self.popen.communicate(timeout=patience)
        assert self.popen.returncode == 0, err
        return json.loads(out)


class Answer:
    """A whole answer, as it came."""

    def __init__(self, status, reason, headers, body):
        self.status, self.reason, self.headers, self.body = status, reason, headers, body

    def header(self, name):
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    def json(self):
        return json.loads(self.body)

    def comparable_headers(self):
        return sorted(
            (name.lower(), value)
            for name, value in self.headers
            if name.lower() not in OF_THE_MOMENT and not name.lower().startswith(("x-rayguard", "ratelimit"))
        )


def ask(url, method="GET", path="/", headers=None, body=None, timeout=30):
    """One request on a connection of its own, with exactly these headers (and Host)."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout)
    try:
        connection.putrequest(method, path, skip_host="Host" in (headers or {}), skip_accept_encoding=True)
        for name, value in (headers or {}).items():
            connection.putheader(name, value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        answer = connection.getresponse()
        return Answer(answer.status, answer.reason, answer.getheaders(), answer.read())
    finally:
        connection.close()
