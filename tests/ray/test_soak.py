"""Mixed traffic, reloads and faults for a long while: memory and descriptors stay flat, and only the faults are felt.

Two minutes in `.ci/run`, before a head that answers at once; by hand as long as one likes, before a real Ray:

    RAYGUARD_SOAK_MINUTES=32 RAYGUARD_SOAK_HEAD=ray pytest tests/ray/test_soak.py -s
"""

import contextlib
import json
import math
import os
import signal
import statistics
import tempfile
import time
from pathlib import Path

from clients import Clients
from proxy import Proxy, Load, ask
from faulty import FaultyHead
from head import Head, command_lines, wait_until
from test_faults import STILL, replace, under_way, whole

MINUTES = float(os.environ.get("RAYGUARD_SOAK_MINUTES", "2"))
REAL = os.environ.get("RAYGUARD_SOAK_HEAD", "faulty") == "ray"
# What grows at first is not a leak: buffers, the tables of those who have called, the allocator's
# arenas, which each new kind of fault fills once more.
WARM_S = 0.3 * 60 * MINUTES

# Student's t for 95 % on both sides, by degrees of freedom.
T_95 = {4: 2.776, 6: 2.447, 8: 2.306, 10: 2.228, 13: 2.160, 18: 2.101}


def slope(samples, blocks):
    """The straight line through `(t, y)`: its slope, and half of the slope's 95 % interval.

    Memory moves in steps and a sample is much like the one before it: fitted to single samples, a line would
    be trusted far too well. So it is fitted to the means of `blocks` stretches, with Student's t for so few points,
    and what one stretch still tells of the next (the lag-1 autocorrelation r of what the line leaves) widens the
    interval by sqrt((1 + r) / (1 - r)), as is usual for a trend in a series that remembers.
    """
    size = len(samples) // blocks
    parts = [samples[at * size : (at + 1) * size] for at in range(blocks)]
    means = [(statistics.fmean(t for t, _ in part), statistics.fmean(y for _, y in part)) for part in parts]
    mean_t, mean_y = statistics.fmean(t for t, _ in means), statistics.fmean(y for _, y in means)
    spread = sum((t - mean_t) ** 2 for t, _ in means)
    rise = sum((t - mean_t) * (y - mean_y) for t, y in means) / spread
    left = [y - mean_y - rise * (t - mean_t) for t, y in means]
    rest = sum(one * one for one in left)
    memory = min(max(sum(one * next_ for one, next_ in zip(left, left[1:])) / rest, 0.0), 0.9) if rest else 0.0
    error = T_95[blocks - 2] * math.sqrt(rest / (blocks - 2) / spread)
    return rise, error * math.sqrt((1 + memory) / (1 - memory))


MIX = """
duration_s = {seconds}
[[stream]]
name = "tabs"
rate = {tabs}
timeout_s = 10
request = [{{ path = "/api/jobs/" }}, {{ path = "/nodes?view=summary" }}, {{ path = "/api/v0/actors" }}, {{ path = "/api/v0/tasks?limit={{n}}" }}]
[[stream]]
name = "poller"
rate = {polls}
timeout_s = 2
request = [{{ path = "/api/v0/tasks?limit=20" }}, {{ path = "/api/jobs/raysubmit_1/logs" }}, {{ path = "/api/jobs/torn" }}]
"""


class RealHead(Head):
    """A real head that can be frozen, killed and started again as the emulated one is."""

    metrics = '[metrics]\ndiscovery_file = "off"\n'

    def signal(self, number):
        for pid, line in command_lines():
            if str(self.directory) in line:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)

    def start(self):
        self.__enter__()

    def feel(self, _):
        """Its metrics are what they are."""


def cpu_s(proxy):
    fields = Path(f"/proc/{proxy.session.popen.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_long_mixed_life_leaves_no_trace_but_the_record():
    seconds = MINUTES * 60
    # A real head is slow enough, and costs the machine enough, at a seventh of the traffic.
    tabs, polls, kills = (3, 9, 600) if REAL else (20, 60, 55)
    with RealHead(quick_metrics=False) if REAL else FaultyHead() as head, Proxy(head, head.metrics + STILL) as proxy:
        good = proxy.config.read_text()
        load = Load(proxy.url, MIX.format(seconds=int(seconds), tabs=tabs, polls=polls))
        memory, descriptors, faults = [], [], []
        with Clients(proxy.url, count=2, pause_s=0.1) as polite:
            begun = time.monotonic()
            turn = 0
            while time.monotonic() - begun < seconds:
                turn += 1
                if turn % 10 == 0:
                    replace(proxy.config, good + f"[class.state-heavy]\nin_flight = {{ initial = {2 + turn // 10 % 2}, min = 1, max = 4 }}\n")
                    proxy.session.popen.send_signal(signal.SIGHUP)
                if turn % 25 == 0:
                    head.feel("html" if turn % 50 else "well")
                if REAL and turn % 60 == 0:
                    job = json.dumps({"entrypoint": "echo a line for the log", "submission_id": f"raysubmit_{turn // 60}"})
                    with contextlib.suppress(OSError):
                        ask(proxy.url, "POST", "/api/jobs/", {"Content-Type": "application/json"}, job.encode(), timeout=20)
                if turn % 40 == 0:
                    at = time.monotonic()
                    head.signal(signal.SIGSTOP)
                    time.sleep(1.0)
                    head.signal(signal.SIGCONT)
                    faults.append((at - 0.5, time.monotonic() + 5.0))
                if turn % kills == 0:
                    at = time.monotonic()
                    head.kill()
                    time.sleep(1.0)
                    head.start()
                    faults.append((at - 0.5, time.monotonic() + (15.0 if REAL else 5.0)))
                time.sleep(1.0)
                now = time.monotonic()
                memory.append((now - begun, proxy.status("VmRSS")))
                descriptors.append((now - begun, proxy.descriptors()))
            load.report()
            outside = [
                fate for at, _, fate in polite.exchanges if fate != 200 and not any(a <= at <= b for a, b in faults)
            ]  # fmt: skip
        kept = Path(tempfile.mkdtemp(prefix="soak")) / "samples.json"
        kept.write_text(json.dumps({"memory": memory, "descriptors": descriptors}))
        print(f"{len(polite.exchanges)} exchanges, {len(outside)} failed outside {len(faults)} faults; ", end="")
        print(f"{cpu_s(proxy):.0f} s of CPU in {seconds:.0f}; every sample is in {kept}")
        assert not outside, f"{len(outside)} of {len(polite.exchanges)} outside the faults: {outside[:5]}"
        assert polite.served() > (3 if REAL else 5) * seconds
        wait_until("no place is held", lambda: under_way(proxy) == 0, 20)
        # Two minutes are too short to tell a step of the allocator from a slope.
        blocks = 15 if MINUTES >= 20 else 6
        for what, samples, most in (("KiB of memory", memory, 100), ("descriptors", descriptors, 0.5)):
            settled = [(at, count) for at, count in samples if at >= WARM_S]
            rise, error = slope(settled, blocks)
            print(f"{what}: {samples[0][1]} at first, {settled[0][1]} settled, {samples[-1][1]} at last, slope {rise:.3f} +- {error:.3f} a second")
            most = 0 if MINUTES >= 20 else most
            assert rise - error <= most, f"{what} grow by {rise:.3f} +- {error:.3f} a second"
        whole(proxy)
