"""Ray Client (gRPC on 10001) through the proxy."""

import subprocess

import pytest
from proxy import Proxy
from head import BIN

SCRIPT = """
import ray, sys
ray.init(sys.argv[1])
@ray.remote
def square(x):
    return x * x
print('sum', sum(ray.get([square.remote(i) for i in range(5)])), len(ray.nodes()))
print('bytes', len(ray.get(ray.put(bytes(5_000_000)))))
"""


@pytest.fixture(scope="module")
def proxy(head):
    with Proxy(head, ray_client=True) as proxy:
        yield proxy


# Ray's proxier forks a process for each session while its other threads are in gRPC, and now and then the
# child dies of it, with and without a proxy between (ray-project/ray issue 63202). Ray then says one of these.
RAYS_OWN = ("Starting Ray client server failed", "psutil.ZombieProcess")


class Session:
    """A program that holds a session, begun again when Ray lost the process behind it."""

    def __init__(self, head, port, directory):
        directory.mkdir(exist_ok=True)
        script = directory / "client.py"
        script.write_text(SCRIPT)
        self.start = lambda: subprocess.Popen(
            [str(BIN / "python"), str(script), f"ray://127.0.0.1:{port}"],
            env=head.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        self.process = self.start()

    def said(self):
        for _ in range(4):
            said, _ = self.process.communicate(timeout=150)
            if not any(sentence in said for sentence in RAYS_OWN):
                break
            self.process = self.start()
        assert self.process.returncode == 0, said
        return said


def test_a_session_works_through_the_proxy(head, proxy, tmp_path):
    said = Session(head, proxy.client_port, tmp_path).said()
    assert "sum 30 1" in said
    assert "bytes 5000000" in said


def test_two_sessions_at_once(head, proxy, tmp_path):
    sessions = [Session(head, proxy.client_port, tmp_path / name) for name in ("a", "b")]
    for session in sessions:
        assert "sum 30 1" in session.said()
