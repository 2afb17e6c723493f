"""Five minutes before a head whose CPUs and queue are full with users' own work: every submission is accepted, and no limit
of theirs is cut for it."""

import time

from head import Head, Session, wait_until
from proxy import Proxy
from test_busy import submit

EVERY_S = 4
SUBMISSIONS = 75

# Two tasks use both CPUs, and five thousand wait for them. They give way to what else this machine does: the CPUs are
# as busy, whatever they are busy with.
BUSY = """
import os, ray, time
ray.init(address="{address}")

@ray.remote(num_cpus=1)
def spin(until):
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    while time.time() < until:
        pass

until = time.time() + {seconds}
spinning = [spin.remote(until) for _ in range(2)]
waiting = [spin.remote(0) for _ in range(5000)]
print("busy", flush=True)
ray.get(spinning)
"""


def cuts(proxy, *classes):
    moves = [line for line in proxy.records("adjustment") if line["class"] in classes]
    return [line["reason"] for line in moves if line["new"] < line["old"]]


def test_submissions_to_a_head_whose_cores_and_queue_are_full_are_all_accepted():
    with Head(quick_metrics=False) as head, Proxy(head) as proxy:
        script = head.directory / "busy.py"
        # Its address in words: "auto" is the last head that this machine started, and others are tested beside this one.
        script.write_text(BUSY.format(address=f"127.0.0.1:{head.ports['gcs']}", seconds=EVERY_S * SUBMISSIONS + 60))
        out = head.directory / "busy.out"
        driver = Session([head.bin / "python", script], out, head.env)
        try:
            wait_until("the cores are busy", lambda: driver.check() or "busy" in out.read_text(), 120)
            statuses = []
            for _ in range(SUBMISSIONS):
                began = time.monotonic()
                statuses.append(submit(proxy).status)
                time.sleep(max(0.0, EVERY_S - (time.monotonic() - began)))
            assert statuses == [200] * SUBMISSIONS
            assert not cuts(proxy, "job-submit", "agent-submit", "job-status", "job-control")
            assert not proxy.records("shed") and not proxy.records("shed_summary")
        finally:
            driver.stop()
