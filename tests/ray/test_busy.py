"""Before a head without overload every submission is let in, with metrics and without."""

import json
import time

from head import Head, wait_until
from proxy import Proxy, ask


def submit(proxy, entrypoint="true"):
    body = json.dumps({"entrypoint": entrypoint}).encode()
    return ask(proxy.url, "POST", "/api/jobs/", {"content-type": "application/json"}, body, timeout=60)


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
