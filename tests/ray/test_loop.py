"""The loop on a real head: it moves on real readings, holds still without cause, and says why."""

import re
import threading
import time
import urllib.request

import pytest
from door import Door, Load, ask
from head import Head, wait_until

QUICK = """
[metrics]
discovery_file = "off"
interval = "1s"
timeout = "900ms"
[control]
outer_period = "1s"
window = "1s"
data_age = "1s"
cooldown = "3s"
[signal.head_cpu]
target = 40
stale_after = "20s"
on_stale = "hold"
"""

FLOOD = """
duration_s = 40
in_flight_max = 512
[[stream]]
name = "polite"
rate = 4
timeout_s = 2
first_address = "127.0.1.1"
request = [{ path = "/api/jobs/" }, { path = "/api/v0/actors" }]
[[stream]]
name = "flood"
rate = 25
from_s = 5
until_s = 25
timeout_s = 10
first_address = "127.0.2.1"
request = [{ path = "/api/v0/tasks?limit={n}&detail=1" }]
"""

CALM = """
duration_s = 20
[[stream]]
name = "polite"
rate = 5
timeout_s = 2
request = [{ path = "/api/jobs/" }, { path = "/api/v0/actors" }, { path = "/nodes?view=summary" }, { path = "/api/v0/tasks?limit={n}" }]
"""


class CpuWatch(threading.Thread):
    """Reads the head's CPU as Ray exports it, so that what the record cites can be held against it."""

    def __init__(self, head):
        super().__init__(daemon=True)
        self.url = f"http://{head.metrics_targets[0]}/metrics"
        self.seen, self.ended = [], threading.Event()

    def run(self):
        while not self.ended.wait(0.3):
            try:
                with urllib.request.urlopen(self.url, timeout=5) as page:
                    found = re.search(r"^ray_node_cpu_utilization\{.*\} ([\d.e+-]+)", page.read().decode(), re.M)
            except OSError:
                continue
            if found:
                self.seen.append(round(float(found[1]), 6))


@pytest.fixture(scope="module")
def busy_head():
    """A head that knows a thousand tasks: each list of them costs it some 0.1 s."""
    with Head() as head:
        script = head.directory / "tasks.py"
        script.write_text(
            "import ray\nray.init(address='auto')\n"
            "@ray.remote(num_cpus=0.1)\ndef nothing(i):\n    return i\n"
            "ray.get([nothing.remote(i) for i in range(1000)])\n"
        )
        head.run("ray", "job", "submit", "--address", head.url, "--", "python", str(script), timeout=120)
        yield head


def test_a_healthy_head_is_left_alone(busy_head):
    # The node's CPU includes whatever else this machine does meanwhile: not this head's health.
    with Door(busy_head, "[signal.head_cpu]\ntarget = 100\n") as door:
        whole = Load(door.url, CALM).report()["windows"][0]["streams"]["polite"]
        assert set(whole["fates"]) == {"200"}, "a healthy head sheds nothing"
        assert whole["in_time_share"] == 1.0
        cuts = [line for line in door.records("adjustment") if line["new"] < line["old"]]
        assert not cuts, [line["reason"] for line in cuts]


@pytest.fixture(scope="module")
def flooded(busy_head):
    watch = CpuWatch(busy_head)
    watch.start()
    with Door(busy_head, QUICK) as door:
        time.sleep(3.0)
        report = Load(door.url, FLOOD).report()
        time.sleep(2.0)
        watch.ended.set()
        yield door, report, watch.seen, door.records()


def test_a_flood_moves_limits_down_and_calm_lets_them_rise(flooded):
    _, _, _, records = flooded
    moved = [line for line in records if line["event"] == "adjustment" and line["class"] == "state-heavy"]
    assert any(line["new"] < line["old"] for line in moved)
    assert {line["loop"] for line in moved} >= {"inner"} or {line["loop"] for line in moved} >= {"outer"}


def test_the_polite_client_is_served_through_the_flood(flooded):
    _, report, _, _ = flooded
    polite = report["windows"][0]["streams"]["polite"]
    assert polite["in_time_share"] >= 0.99, polite


def test_every_adjustment_cites_what_the_head_exported(flooded):
    _, _, seen, records = flooded
    adjustments = [line for line in records if line["event"] == "adjustment"]
    assert adjustments
    cited = [signal for line in adjustments for signal in line["signals"] if signal["name"] == "head_cpu"]
    assert cited, "the flood must have moved the head's CPU"
    for signal in cited:
        assert signal["target"] == 40
        assert signal["pressure"] == pytest.approx(signal["value"] / 40, rel=1e-6)
        assert any(abs(signal["value"] - value) < 0.05 for value in seen), f"{signal['value']} was never exported"
        assert signal["age_ms"] < 20_000
    for line in adjustments:
        assert line["reason"], line
        assert line["signals"] or line["derivation"]["by"] == "given", line


def test_the_record_is_in_order_and_whole(flooded):
    _, _, _, records = flooded
    numbers = [line["seq"] for line in records]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert records[0]["event"] == "start"
    assert not [line for line in records if line["event"] == "gap"]


def test_a_head_that_goes_away_and_comes_back_is_followed():
    with Head() as head:
        with Door(head) as door:
            head.session.stop()
            gone = wait_until("502 or 503 from the door", lambda: (a := ask(door.url, path="/api/jobs/")).status >= 502 and a, 20)
            assert b"rayguard:" in gone.body
            begin = time.monotonic()
            ask(door.url, path="/api/jobs/")
            assert time.monotonic() - begin < 3.0, "a dead head is reported at once"
            assert door.session.popen.poll() is None
