"""Ray Client (gRPC on 10001) through the door."""

import subprocess
import sys

import pytest
from door import Door
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
def door(head):
    with Door(head, ray_client=True) as door:
        yield door


def connect(head, port, tmp_path):
    script = tmp_path / "client.py"
    script.write_text(SCRIPT)
    return subprocess.run(
        [str(BIN / "python"), str(script), f"ray://127.0.0.1:{port}"],
        env=head.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120,
    )  # fmt: skip


def test_a_session_works_through_the_door(head, door, tmp_path):
    done = connect(head, door.client_port, tmp_path)
    assert done.returncode == 0, done.stdout
    assert "sum 30 1" in done.stdout
    assert "bytes 5000000" in done.stdout


def test_two_sessions_at_once(head, door, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "client.py").write_text(SCRIPT)
    sessions = [
        subprocess.Popen(
            [sys.executable, str(tmp_path / name / "client.py"), f"ray://127.0.0.1:{door.client_port}"],
            env=head.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for name in ("a", "b")
    ]  # fmt: skip
    for session in sessions:
        said, _ = session.communicate(timeout=150)
        assert "sum 30 1" in said, said
