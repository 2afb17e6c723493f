"""The loop on a real head: it moves on real readings, holds still without cause, and says why."""

import datetime
import subprocess
import time

import pytest
from proxy import RAYGUARD, Proxy, Load, ask
from exporter import Recorder
from head import Head, wait_until

# A rate that follows the CPU of the process behind it: the one reading that nothing else on the
# machine moves.
QUICK = """
[metrics]
targets = ["{target}"]
discover = false
discovery_file = "off"
interval = "1s"
timeout = "900ms"
[control]
outer_period = "1s"
window = "1s"
data_age = "1s"
cooldown = "2s"
[class.state-heavy]
rate = {{ initial = "1/s", min = "0.1/s", max = "20/s" }}
in_flight = 8
coalesce = "off"
signals = ["state_head_cpu"]
[signal.state_head_cpu]
target = 30
stale_after = "20s"
on_stale = "hold"
"""

FLOOD = """
duration_s = 60
in_flight_max = 512
[[stream]]
name = "polite"
rate = 4
timeout_s = 2
first_address = "127.0.1.1"
request = [{ path = "/api/jobs/" }]
[[stream]]
name = "flood"
rate = 25
from_s = 5
until_s = 55
timeout_s = 30
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
    with Proxy(busy_head) as proxy:
        whole = Load(proxy.url, CALM).report()["windows"][0]["streams"]["polite"]
        assert set(whole["fates"]) == {"200"}, "a healthy head sheds nothing"
        assert whole["in_time_share"] == 1.0
        cuts = [line for line in proxy.records("adjustment") if line["new"] < line["old"]]
        assert not cuts, [line["reason"] for line in cuts]


@pytest.fixture(scope="module")
def flooded(busy_head):
    with Recorder(busy_head.metrics_targets[2]) as exporter:  # the dashboard's own
        with Proxy(busy_head, QUICK.format(target=exporter.target)) as proxy:
            time.sleep(3.0)
            report = Load(proxy.url, FLOOD).report()
            yield proxy, report, exporter, proxy.records()


def moved_by_readings(records):
    return [
        line
        for line in records
        if line["event"] == "adjustment" and line["class"] == "state-heavy" and line["loop"] == "outer"
    ]


def test_a_limit_goes_down_and_up_again_on_real_readings(flooded):
    moved = moved_by_readings(flooded[3])
    assert any(line["new"] < line["old"] for line in moved), "the flood takes more than 30 % of the StateHead"
    assert any(line["new"] > line["old"] for line in moved), "and less once it is cut"


def test_the_polite_client_is_served_through_the_flood(flooded):
    _, report, _, _ = flooded
    polite = report["windows"][0]["streams"]["polite"]
    assert polite["in_time_share"] >= 0.99, polite


def test_every_adjustment_is_explained_by_the_scrape_it_cites(flooded):
    _, _, exporter, records = flooded
    read = exporter.values("ray_component_cpu_percentage", 'Component="dashboard_StateHead"')
    moved = moved_by_readings(records)
    assert moved and read
    for line in moved:
        (cited,) = line["signals"]
        assert (cited["name"], cited["target"]) == ("state_head_cpu", 30)
        assert exporter.target in cited["source"], cited
        assert cited["pressure"] == pytest.approx(cited["value"] / 30, rel=1e-6)
        # The cited reading is a page we kept, as old as the adjustment log says (to within the scrape).
        true_at = moment(line["time"]) - cited["age_ms"] / 1000
        pages = [value for at, value in read if abs(at - true_at) < 1.5]
        assert any(value == pytest.approx(cited["value"], abs=0.05) for value in pages), (line, pages)
        # A cut that did not help is given back, whatever is read by then.
        if line["law"] == "restored":
            assert line["new"] > line["old"] and line["derivation"]["signal"] == "state_head_cpu", line
            assert "did not lower state_head_cpu" in line["reason"], line["reason"]
            continue
        # Down on too much, up on too little, and the sentence says by what.
        if line["new"] < line["old"]:
            assert cited["pressure"] > 1, line
        else:
            assert cited["pressure"] < 1, line
        assert "state head cpu" in line["reason"], line["reason"]


def moment(text):
    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def test_the_record_replays_bit_for_bit(flooded):
    proxy, _, _, _ = flooded
    replayed = subprocess.run(
        [RAYGUARD, "replay", str(proxy.state / "adjustment-log")], stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert replayed.returncode == 0, replayed.stdout + replayed.stderr


def test_the_record_is_in_order_and_whole(flooded):
    _, _, _, records = flooded
    numbers = [line["seq"] for line in records]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert records[0]["event"] == "start"
    assert not [line for line in records if line["event"] == "gap"]


def test_a_head_that_goes_away_and_comes_back_is_followed():
    with Head() as head:
        with Proxy(head) as proxy:
            head.session.stop()
            gone = wait_until("502 or 503 from the proxy", lambda: (a := ask(proxy.url, path="/api/jobs/")).status >= 502 and a, 20)
            assert b"rayguard:" in gone.body
            begin = time.monotonic()
            ask(proxy.url, path="/api/jobs/")
            assert time.monotonic() - begin < 3.0, "a dead head is reported at once"
            assert proxy.session.popen.poll() is None
