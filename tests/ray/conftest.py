"""One head serves all tests that do not need one of their own kind."""

import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from proxy import Proxy, ask  # noqa: E402
from head import Head, wait_until  # noqa: E402


@pytest.fixture(scope="session")
def head():
    with Head() as head:
        yield head


@pytest.fixture(scope="session")
def proxy(head):
    with Proxy(head) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def finished_job(head):
    return finish_a_job(head)


def finish_a_job(head):
    """A job that ran to its end on the head, submitted without the proxy."""
    submission = "raysubmit_finished"
    head.run(
        "ray", "job", "submit", "--address", head.url, "--submission-id", submission,
        "--", "python", "-c", "print('one line for the log')",
    )  # fmt: skip
    def is_over():
        # Versions before 2.53 answer no client that names no software.
        job = ask(head.url, path=f"/api/jobs/{submission}", headers={"User-Agent": "test"}).json()
        return job["status"] == "SUCCEEDED"

    wait_until("the job's end", is_over, 60)
    time.sleep(2.0)  # its driver's entry in the job list is written a little later
    return submission


@pytest.fixture(scope="session")
def work(head):
    work_a_little(head)


def work_a_little(head):
    """A few tasks and an actor, so that lists are not empty; they stay until the head ends."""
    script = (
        "import ray, time\n"
        "ray.init(address='auto')\n"
        "@ray.remote(num_cpus=0.1)\n"
        "def square(x):\n    return x * x\n"
        "@ray.remote(num_cpus=0.1)\n"
        "class Counter:\n    def count(self):\n        return 1\n"
        "counter = Counter.options(name='counter', lifetime='detached', namespace='kept').remote()\n"
        "print(sum(ray.get([square.remote(i) for i in range(10)])), ray.get(counter.count.remote()))\n"
    )
    path = head.directory / "work.py"
    path.write_text(script)
    head.run("ray", "job", "submit", "--address", head.url, "--", "python", str(path))
    time.sleep(2.0)
