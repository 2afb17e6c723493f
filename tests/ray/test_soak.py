"""Mixed traffic, reloads and faults for a long while: memory and descriptors stay flat, and only the faults are felt.

Two minutes in `.ci/run`; by hand as long as one likes: `RAYGUARD_SOAK_MINUTES=30 pytest tests/ray/test_soak.py -s`.
"""

import math
import os
import signal
import statistics
import time

from callers import Callers
from door import Door, Load
from faulty import FaultyHead
from head import wait_until
from test_faults import STILL, replace, under_way, whole

MINUTES = float(os.environ.get("RAYGUARD_SOAK_MINUTES", "2"))
# What grows at first is not a leak: buffers, the tables of those who have called, the allocator's
# arenas; and for a quarter of an hour the page's history, a sample a second.
WARM_S = min(0.3 * 60 * MINUTES, 60.0) if MINUTES < 20 else 960.0


def slope(samples):
    """The straight line through `(t, y)`: its slope, and two standard errors of it.

    Neighbouring samples resemble each other, so the error is that of the means of twenty stretches.
    """
    size = max(1, len(samples) // 20)
    means = [
        (statistics.fmean(t for t, _ in part), statistics.fmean(y for _, y in part))
        for part in (samples[at : at + size] for at in range(0, len(samples) - size + 1, size))
    ]
    mean_t, mean_y = statistics.fmean(t for t, _ in means), statistics.fmean(y for _, y in means)
    spread = sum((t - mean_t) ** 2 for t, _ in means)
    rise = sum((t - mean_t) * (y - mean_y) for t, y in means) / spread
    rest = sum((y - mean_y - rise * (t - mean_t)) ** 2 for t, y in means)
    return rise, 2 * math.sqrt(rest / (len(means) - 2) / spread)


MIX = """
duration_s = {seconds}
[[stream]]
name = "tabs"
rate = 20
timeout_s = 10
request = [{{ path = "/api/jobs/" }}, {{ path = "/nodes?view=summary" }}, {{ path = "/api/v0/actors" }}, {{ path = "/api/v0/tasks?limit={{n}}" }}]
[[stream]]
name = "poller"
rate = 60
timeout_s = 2
request = [{{ path = "/api/v0/tasks" }}, {{ path = "/api/jobs/raysubmit_1/logs" }}, {{ path = "/api/jobs/torn" }}]
"""


def test_a_long_mixed_life_leaves_no_trace_but_the_record():
    seconds = MINUTES * 60
    with FaultyHead() as faulty, Door(faulty, faulty.metrics + STILL) as door:
        good = door.config.read_text()
        load = Load(door.url, MIX.format(seconds=int(seconds)))
        memory, descriptors, faults = [], [], []
        with Callers(door.url, count=2, pause_s=0.1) as polite:
            begun = time.monotonic()
            turn = 0
            while time.monotonic() - begun < seconds:
                turn += 1
                if turn % 10 == 0:
                    replace(door.config, good + f"[class.state-heavy]\nin_flight = {{ initial = {2 + turn // 10 % 2}, min = 1, max = 4 }}\n")
                    door.session.popen.send_signal(signal.SIGHUP)
                if turn % 25 == 0:
                    faulty.feel("html" if turn % 50 else "well")
                if turn % 40 == 0:
                    at = time.monotonic()
                    faulty.signal(signal.SIGSTOP)
                    time.sleep(1.0)
                    faulty.signal(signal.SIGCONT)
                    faults.append((at - 0.5, time.monotonic() + 5.0))
                if turn % 55 == 0:
                    at = time.monotonic()
                    faulty.kill()
                    time.sleep(1.0)
                    faulty.start()
                    faults.append((at - 0.5, time.monotonic() + 5.0))
                time.sleep(1.0)
                now = time.monotonic()
                memory.append((now - begun, door.status("VmRSS")))
                descriptors.append((now - begun, door.descriptors()))
            load.report(120)
            outside = [
                fate for at, _, fate in polite.exchanges if fate != 200 and not any(a <= at <= b for a, b in faults)
            ]  # fmt: skip
        assert not outside, f"{len(outside)} of {len(polite.exchanges)} outside the faults: {outside[:5]}"
        assert polite.served() > 5 * seconds
        wait_until("no place is held", lambda: under_way(door) == 0, 20)
        # In two minutes the history is still filling. After a quarter of an hour the allocator alone still
        # rounds up now and then: 0.2 KiB a second was measured in the second quarter, and falling.
        memory_max, descriptors_max = (100, 0.5) if MINUTES < 20 else (0.5, 0)
        for what, samples, most in (("KiB of memory", memory, memory_max), ("descriptors", descriptors, descriptors_max)):
            settled = [(at, count) for at, count in samples if at >= WARM_S]
            rise, error = slope(settled)
            print(f"{what}: {samples[0][1]} at first, {samples[-1][1]} at last, slope {rise:.3f} +- {error:.3f} a second")
            assert rise - error <= most, f"{what} grow by {rise:.3f} +- {error:.3f} a second"
        whole(door)
