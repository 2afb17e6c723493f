#!/usr/bin/env python3
"""What does sharing limits cost a request? The same replica with and without `[replicas]`, turn by turn.

A Redis of its own, `--count` replicas (3) of which one is measured (the leader pays most, and the first one
leads), one nginx behind and one wrk before it, one worker each. A B B A; the figure is the median of
the rounds' ratios of CPU time per request (user + system, the whole process), so that whatever else
the machine does falls on both.

    cargo build --release && python3 benches/proxy/replicas.py
"""

import argparse, math, pathlib, statistics, subprocess, sys, tempfile

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import cost

REDIS, IDLE = 18480, 18481
REPLICAS = '[replicas]\nurl = "redis://127.0.0.1:%d/0"\ncount = %d\nname = "%s"\n'


def measured(home, rayguard, text, seconds):
    """CPU seconds per request, and requests a second."""
    replica = cost.start(home, "rayguard.toml", text, [rayguard, "run", "--config", "rayguard.toml"], {"TOKIO_WORKER_THREADS": "1"})
    try:
        cost.await_port(cost.FRONT)
        cost.load(2, 64)
        before = cost.cpu(replica.pid)
        requests, rate, bad = cost.load(seconds, 64)
        if bad:
            # A refusal costs less than an exchange: such a round compares two different things.
            print(f"  {bad} of {requests} were not 2xx", file=sys.stderr)
        return (cost.cpu(replica.pid) - before) / requests, rate
    finally:
        replica.terminate()
        replica.wait()


def interval(values):
    """Between which of the values the median lies with at least 95 %, whatever their distribution, and with how much."""
    values, count = sorted(values), len(values)
    outside = [2 * sum(math.comb(count, below) for below in range(rank + 1)) / 2**count for rank in range(count // 2)]
    rank = max((rank for rank, chance in enumerate(outside) if chance <= 0.05), default=0)
    return values[rank], values[-1 - rank], 1 - outside[rank]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--rayguard")
    parser.add_argument("--count", type=int, default=3)
    arguments = parser.parse_args()
    root = pathlib.Path(__file__).resolve().parents[2]
    rayguard = str(pathlib.Path(arguments.rayguard or root / "target/release/rayguard").resolve())
    with tempfile.TemporaryDirectory() as home:
        others = []
        try:
            for kind in ("b", "p", "f", "u", "s"):
                pathlib.Path(home, kind).mkdir(exist_ok=True)
            others.append(cost.start(home, "backend.conf", cost.BACKEND_CONF, ["nginx", "-p", home, "-c", "backend.conf", "-e", "backend.log"]))
            others.append(subprocess.Popen(["redis-server", "--port", str(REDIS), "--bind", "127.0.0.1", "--save", "", "--dir", home], stdout=subprocess.DEVNULL))
            cost.await_port(cost.BACKEND)
            cost.await_port(REDIS)
            for number in range(1, arguments.count):
                idle = cost.RAYGUARD_CONF.replace(str(cost.FRONT), str(IDLE + number)) + REPLICAS % (REDIS, arguments.count, f"idle-{number}")
                place = pathlib.Path(home, f"idle-{number}")
                place.mkdir()
                others.append(cost.start(place, "rayguard.toml", idle, [rayguard, "run", "--config", "rayguard.toml"]))
            ratios, alone, shared = [], [], []
            texts = (cost.RAYGUARD_CONF, cost.RAYGUARD_CONF + REPLICAS % (REDIS, arguments.count, "measured"))
            for at in range(arguments.rounds):
                # The second finds the machine warmer: each is second every other round.
                took = {which: measured(home, rayguard, texts[which], arguments.seconds) for which in (at % 2, 1 - at % 2)}
                (a, rate_a), (b, rate_b) = took[0], took[1]
                ratios.append(b / a)
                alone.append(a)
                shared.append(b)
                print(f"round {at + 1}: alone {a * 1e6:.2f} us at {rate_a:.0f}/s, as one of {arguments.count} replicas {b * 1e6:.2f} us at {rate_b:.0f}/s, ratio {b / a:.3f}", flush=True)
            low, high, level = interval(ratios)
            print(f"CPU per request: alone {statistics.median(alone) * 1e6:.2f} us, as one of {arguments.count} replicas {statistics.median(shared) * 1e6:.2f} us, median ratio {statistics.median(ratios):.3f} ({low:.3f} to {high:.3f} with {level:.1%})")
        finally:
            for other in others:
                other.terminate()
                other.wait()


if __name__ == "__main__":
    main()
