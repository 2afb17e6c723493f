"""The synthetic table: every contender before a single-loop head of exactly known capacity.

    python3 benches/protection/synthetic.py [--rounds 3] [--rows heavy,ramp] [--contenders nginx,rayguard]

Rows are the plans beside this file; each cell starts the head and the contender anew. Rounds
are interleaved (row by row, contender by contender, then again), so a noisy minute on the machine does not
land on one contender. A cell whose load generator was late by more than 25 ms (p99) is marked noisy.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
import urllib.request
from pathlib import Path

from contenders import HEAD_PORT, HERE, ROOT, Contender, Process, commands, find_rayguard, wait_for_port
from past import age

CAPACITY_MS = 1000.0
NOISY_MS = 25.0
ROWS = [
    "one-address",
    "spread-token",
    "shared-address",
    "heavy",
    "retry-storm",
    "square-wave",
    "calm-0.5",
    "calm-0.7",
    "ramp",
    "pollers",
    "capacity-drop",
    "crowd-200",
    "crowd-1000",
    "crowd-10000",
]


def head_command():
    return [os.environ.get("SINGLE_LOOP_HEAD", str(ROOT / "target/release/examples/single-loop-head")), f"127.0.0.1:{HEAD_PORT}"]


def load_command(plan, target, seed):
    return [*os.environ.get("RAYGUARD_LOAD", f"{find_rayguard()} load").split(), str(plan), "--target", target, "--seed", str(seed)]


def ask(path):
    with urllib.request.urlopen(f"http://127.0.0.1:{HEAD_PORT}{path}", timeout=5) as answer:
        return json.load(answer)


class Watch(threading.Thread):
    """Reads the head's own state twice a second, and slows the head when the plan says so."""

    def __init__(self, dips, length):
        super().__init__(daemon=True)
        self.dips, self.length, self.states = list(dips), length, []

    def run(self):
        begin = time.monotonic()
        while (at := time.monotonic() - begin) < self.length + 1:
            while self.dips and at >= self.dips[0][0]:
                _, seconds, factor = self.dips.pop(0)
                ask(f"/head/dip?factor={factor}&for_s={seconds}")
            self.states.append((round(at, 2), ask("/head/state")))
            time.sleep(0.25)


def capacity_at(second, dips):
    """Milliseconds of useful work the head can do in this second."""
    return CAPACITY_MS * min((factor for begin, length, factor in dips if begin <= second < begin + length), default=1.0)


def usable(plan, seconds, measured):
    """What the head could usefully have done, in milliseconds: in each second the lesser of what was asked
    and what it can do."""
    notes = plan["notes"]
    total = 0.0
    for second in range(*measured):
        room = capacity_at(second, notes.get("dips", []))
        asked = sum(
            seconds[stream["name"]]["due"][second] * stream["request"][0].get("cost_ms", 0) for stream in plan["stream"]
        )
        total += room if notes.get("saturating") else min(asked, room)
    return total


def live_through_calm(plan, name, work, state):
    """What a plan's polite client does in calm before it begins; an hour passes until then."""
    polite = next(stream for stream in plan["stream"] if stream["name"] == "polite")
    calm = Path(work) / "calm.toml"
    given = {key: value for key, value in polite.items() if key != "request"}
    lines = [f"duration_s = {plan['notes']['past_s']}", "[[stream]]", *(f"{key} = {json.dumps(value)}" for key, value in given.items())]
    shapes = ", ".join("{ " + ", ".join(f"{key} = {json.dumps(value)}" for key, value in shape.items()) + " }" for shape in polite["request"])
    calm.write_text("\n".join([*lines, f"request = [{shapes}]"]))
    with Contender(name, work, state=state) as contender:
        time.sleep(0.5)
        subprocess.run(load_command(calm, contender.target, 1), check=True, capture_output=True)
    if name == "rayguard":
        age(state, 3600)


def cell(row, name, seed, work):
    """One measurement."""
    path = HERE / "plans" / f"{row}.toml"
    plan = tomllib.loads(path.read_text())
    notes = plan["notes"]
    head = Process(head_command(), Path(work) / "head.log")
    try:
        wait_for_port(HEAD_PORT, process=head)
        state = Path(work) / f"state-{time.monotonic_ns()}"
        if "past_s" in notes:
            live_through_calm(plan, name, work, state)
        with Contender(name, work, state=state) as contender:
            time.sleep(0.5)
            watch = Watch(notes.get("dips", []), plan["duration_s"])
            cpu_before, _ = contender.usage()
            load = subprocess.Popen(
                load_command(path, contender.target, seed), stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
            watch.start()
            out, err = load.communicate(timeout=plan["duration_s"] + 60)
            if load.returncode:
                raise RuntimeError(err.decode())
            cpu_after, rss = contender.usage()
            watch.join()
    finally:
        head.stop()
    report = json.loads(out)
    figures = report["windows"][1]["streams"]
    polite = figures["polite"]
    others = {k: v for k, v in figures.items() if k != "polite"}
    shed = {
        name: sum(n for fate, n in stream["fates"].items() if fate in ("429", "503", "504", "502")) / max(stream["due"], 1)
        for name, stream in figures.items()
    }
    useful = sum(stream["useful_ms"] for stream in figures.values())
    return {
        "row": row,
        "contender": name,
        "seed": seed,
        "polite": polite["in_time_share"],
        "polite_p50_ms": polite["p50_ms"],
        "polite_p99_ms": polite["p99_ms"],
        "polite_fates": polite["fates"],
        "others_in_time": {k: v["in_time_share"] for k, v in others.items()},
        "others_fates": {k: v["fates"] for k, v in others.items()},
        "shed_share": shed,
        "goodput": useful / usable(plan, report["seconds"], notes["measure"]),
        "queued_max": max((state["queued_max"] for _, state in watch.states), default=0),
        "abandoned": watch.states[-1][1]["abandoned"] if watch.states else None,
        "cpu_s": cpu_after - cpu_before,
        "rss_mib": rss,
        "late_p99_ms": report["late_p99_ms"],
        "noisy": report["late_p99_ms"] > NOISY_MS,
        "seconds": report["seconds"],
    }


def spread(values):
    return f"{statistics.median(values):.3f}" + (f" ±{(max(values) - min(values)) / 2:.3f}" if len(values) > 1 else "")


def table(results):
    """A Markdown table: polite / goodput, median over the rounds and half the range."""
    names = list(dict.fromkeys(result["contender"] for result in results))
    lines = ["| row | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for row in dict.fromkeys(result["row"] for result in results):
        cells = []
        for name in names:
            found = [r for r in results if r["row"] == row and r["contender"] == name]
            if not found:
                cells.append("")
                continue
            polite = statistics.median(r["polite"] for r in found) * 100
            least = min(r["polite"] for r in found) * 100
            goodput = statistics.median(r["goodput"] for r in found)
            noisy = " (noisy)" if any(r["noisy"] for r in found) else ""
            worst = f" (least {least:.1f})" if polite - least > 0.05 else ""
            cells.append(f"{polite:.1f} %{worst} / {goodput:.2f}{noisy}")
        title = tomllib.loads((HERE / "plans" / f"{row}.toml").read_text())["notes"]["title"]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--contenders", default=",".join(commands(Path("."))))
    parser.add_argument("--out", type=Path, default=ROOT / "target/protection/synthetic.json")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by a signal"))
    results = []
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="protection-") as work:
        for round_number in range(options.rounds):
            for row in options.rows.split(","):
                for name in options.contenders.split(","):
                    result = cell(row, name, round_number + 1, work)
                    results.append(result)
                    print(
                        f"{row:15} {name:20} polite {result['polite'] * 100:6.2f} %  p99 {result['polite_p99_ms'] or 0:7.1f} ms"
                        f"  goodput {result['goodput']:.3f}  queued_max {result['queued_max']:5}  cpu {result['cpu_s']:.2f} s"
                        f"  late {result['late_p99_ms']:.1f} ms",
                        flush=True,
                    )
                    options.out.write_text(json.dumps(results))
    print()
    print(table(results))


if __name__ == "__main__":
    main()
