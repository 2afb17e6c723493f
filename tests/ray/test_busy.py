"""Before a head that is busy with its own work every submission is accepted, and no limit of theirs is cut for it."""

import json
import os
import time

from head import Head, Session, wait_until
from proxy import Proxy, ask

NIGHTLY = bool(os.environ.get("RAYGUARD_NIGHTLY"))  # five minutes of it
EVERY_S = 4
SUBMISSIONS = 75 if NIGHTLY else 15

# Two tasks use both CPUs, and five thousand wait for them.
BUSY = """
import ray, time
ray.init(address="{address}")

@ray.remote(num_cpus=1)
def spin(until):
    while time.time() < until:
        pass

until = time.time() + {seconds}
spinning = [spin.remote(until) for _ in range(2)]
waiting = [spin.remote(0) for _ in range(5000)]
print("busy", flush=True)
ray.get(spinning)
"""


def submit(proxy, entrypoint="true"):
    body = json.dumps({"entrypoint": entrypoint}).encode()
    return ask(proxy.url, "POST", "/api/jobs/", {"content-type": "application/json"}, body, timeout=60)


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


def test_without_any_metrics_jobs_are_let_in_as_they_start():
    no_metrics = '[metrics]\ndiscover = false\ndiscovery_file = "off"\n'
    with Head(quick_metrics=False) as head, Proxy(head, no_metrics) as proxy:
        took = []
        for _ in range(25):
            began = time.monotonic()
            assert submit(proxy).status == 200
            took.append(time.monotonic() - began)
            time.sleep(max(0.0, 2 - took[-1]))
        # Half of what may wait, and one every five seconds, is what an unseen head would be given: not more than twenty.
        assert max(took) < 4, took
        assert not proxy.records("shed") and not proxy.records("shed_summary")


def test_one_submission_that_fails_on_an_idle_head_moves_no_limit():
    with Head(quick_metrics=False) as head, Proxy(head) as proxy:
        job = json.loads(submit(proxy, "false").body)["submission_id"]
        status = lambda: json.loads(ask(proxy.url, "GET", f"/api/jobs/{job}").body)["status"]
        wait_until("the job has failed", lambda: status() == "FAILED", 60, 1.0)
        refused = ask(proxy.url, "POST", "/api/jobs/", {"content-type": "application/json"}, b"{}").status
        assert refused in (400, 500), refused  # Ray's own answer to a submission without an entrypoint
        time.sleep(20)
        assert not [line["reason"] for line in proxy.records("adjustment") if line["new"] < line["old"]]
        assert not proxy.records("shed")
