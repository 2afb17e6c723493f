"""A real Ray head under a flood, with nothing in front and with each contender.

    python3 benches/protection/real_ray.py [--scenarios a-tasks,b-job-list] [--contenders nothing,rayguard] [--rounds 2]

To be run by a Python that has Ray (see tests/ray/requirements.txt). Each cell begins with a new
head, which is given a history first: 1,000 finished tasks and 119 finished jobs. Rounds are
interleaved. Prints a row per cell, then a table with the median and spread of each scenario and contender
beside its bars; writes everything as JSON, and draws one plot per scenario. rayguard records each of its
cells; each trace is replayed in the simulator, and what was measured is laid beside what was simulated.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "tests" / "ray"))

import simulated
from contenders import CLIENT_PROXY_PORT, CLIENT_HEAD_PORT, HEAD_PORT, HERE, ROOT, Contender, commands, find_rayguard
from head import Head
from history import History
from plot import plot, plot_backlog
from recovery import PATIENCE_S, Backlog, Recovery

# The bars, for polite clients: what is answered in time, and how long the slowest hundredth takes.
SUCCESS_MIN = 0.995
P99_MS_MAX, P99_CALM_TIMES_MAX = 250.0, 2.0
VERSION_P99_MS_MAX = 100.0
HEALTHY_S_MAX = 3.0
OF_ITS_OWN = {("a-tasks", "ray list actors"): 500.0}
VICTIMS = {"a-tasks": "ray list actors"}  # drawn; of the others: job status


def cell(scenario, name, options, work, trace):
    """One measurement: a new head, its history, the contender, the load."""
    text = (HERE / "real" / f"{scenario}.toml").read_text() + "\n" + (HERE / "real" / "polite.toml").read_text()
    notes = tomllib.loads(text)["notes"]
    flood_end = notes.get("flood", [0, tomllib.loads(text)["duration_s"]])[1]
    head = Head(cpus=2, env={"RAY_memory_monitor_refresh_ms": "0"})
    head.ports |= {"dashboard": HEAD_PORT, "client": CLIENT_HEAD_PORT}
    head.arguments = ["--min-worker-port=25000", "--max-worker-port=29999"]  # clear of ours and Ray Client's
    with head:
        ids = History(head).make(options.jobs, {part for part in ("talker", "quiet") if f"{{{part}}}" in text})
        for part, job in ids.items():
            text = text.replace(f"{{{part}}}", job)
        plan = Path(work) / f"{scenario}.toml"
        plan.write_text(text)
        with Contender(name, work, real=True, trace=trace) as contender:
            time.sleep(8)  # its first readings
            cpu_before, _ = head.usage()
            recovery, backlog = Recovery(head, ids["job"], flood_end), Backlog(head)
            recovery.start()
            if notes.get("backlog"):
                backlog.start()
            clients = storm(name, notes) if "ray_clients" in notes else None
            load = [find_rayguard(), "load", str(plan), "--target", contender.target]
            done = subprocess.run(load, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=900)
            if done.returncode:
                raise RuntimeError(done.stderr.decode())
            recovery.join(PATIENCE_S)
            backlog.ended.set()
            cpu_after, rss = head.usage()
            cpu, own = contender.usage()
    report = json.loads(done.stdout)
    return {
        "scenario": scenario,
        "contender": name,
        "windows": {window["name"]: window["streams"] for window in report["windows"]},
        "seconds": report["seconds"],
        "healthy_s": recovery.seconds,
        "backlog": {"deepest": backlog.deepest, "series": backlog.series} if notes.get("backlog") else None,
        "ray_clients": json.loads(clients.communicate(timeout=150)[0]) if clients else None,
        "head_cpu_s": cpu_after - cpu_before,
        "head_rss_mib": rss,
        "contender_cpu_s": cpu,
        "contender_rss_mib": own,
        "late_p99_ms": report["late_p99_ms"],
    }


def storm(name, notes):
    """Starts the Ray Client connections; they knock when the flood is due."""
    port = CLIENT_HEAD_PORT if name == "nothing" else CLIENT_PROXY_PORT
    begin, end = notes["flood"]
    script = f"sleep {begin - 3}; exec {sys.executable} {HERE / 'clients.py'} 127.0.0.1:{port} {notes['ray_clients']} {end - begin - 10}"
    return subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, start_new_session=True)


# === figures ===


def is_polite(stream):
    return not stream.startswith("flood")


def sheds(window):
    return sum(figures["fates"].get(code, 0) for stream, figures in window.items() if is_polite(stream) for code in ("429", "503"))


def summary(result):
    """A cell in few figures: each a bar, or what explains one."""
    calm = result["windows"]["calm"]
    flood = result["windows"].get("flood", calm)
    polite = {stream: figures for stream, figures in flood.items() if is_polite(stream)}
    due = sum(figures["due"] for figures in polite.values())
    slow = {}
    for stream, figures in polite.items():
        # With few questions the slowest hundredth is the slowest one.
        bar = max(OF_ITS_OWN.get((result["scenario"], stream), P99_MS_MAX), P99_CALM_TIMES_MAX * (calm[stream]["p99_ms"] or 0))
        bar = VERSION_P99_MS_MAX if stream == "version" else bar
        slow[stream] = (figures["p99_ms"] or math.inf) / bar
    flooders = [figures for stream, figures in flood.items() if not is_polite(stream)]
    # Ray Client sessions are opened beside the plan.
    sessions = result["ray_clients"] or {"connected": 0, "of": 0}
    return {
        "success": sum(figures["in_time"] for figures in polite.values()) / max(1, due),
        "worst_success": min(figures["in_time_share"] for figures in polite.values()),
        "job_p99_ms": polite["job status"]["p99_ms"] or math.inf,
        "actors_p99_ms": polite["ray list actors"]["p99_ms"] or math.inf,
        "version_p99_ms": polite["version"]["p99_ms"] or math.inf,
        "calm_job_p99_ms": calm["job status"]["p99_ms"] or math.inf,
        "p99_over_bar": max(slow.values()),
        "healthy_s": math.inf if result["healthy_s"] is None else result["healthy_s"],
        "calm_sheds": sheds(calm),
        "polite_sheds": sheds(result["windows"]["whole"]),
        "flood_in_time": sum(figures["in_time"] for figures in flooders) + sessions["connected"],
        "flood_due": sum(figures["due"] for figures in flooders) + sessions["of"],
        "head_cpu_s": result["head_cpu_s"],
        "head_rss_mib": result["head_rss_mib"],
        "contender_cpu_s": result["contender_cpu_s"],
        "contender_rss_mib": result["contender_rss_mib"],
        "backlog": (result["backlog"] or {}).get("deepest"),
    }


def row(result):
    figures = summary(result)
    extra = f"  backlog {figures['backlog']}" if figures["backlog"] is not None else ""
    extra += f"  ray clients {result['ray_clients']}" if result["ray_clients"] else ""
    extra += "  (noisy)" if result["late_p99_ms"] > 25 else ""
    return (
        f"{result['scenario']:14} {result['contender']:15} polite {figures['success'] * 100:5.1f} %"
        f"  p99 ms job {figures['job_p99_ms']:7.0f} (calm {figures['calm_job_p99_ms']:.0f})"
        f" actors {figures['actors_p99_ms']:7.0f} version {figures['version_p99_ms']:7.0f}"
        f"  healthy {figures['healthy_s']:5.1f} s  sheds calm {figures['calm_sheds']} polite {figures['polite_sheds']}"
        f"  flood {figures['flood_in_time']}/{figures['flood_due']}  head {figures['head_cpu_s']:.0f} CPU s {figures['head_rss_mib']:.0f} MiB"
        f"  own {figures['contender_cpu_s']:.1f} CPU s {figures['contender_rss_mib']:.0f} MiB{extra}"
    )


def middle(values, form):
    """Median, and the spread where there is one."""
    values = sorted(values)
    text = form(statistics.median(values))
    return text if len(values) == 1 else f"{text} ({form(values[0])}..{form(values[-1])})"


def table(everything):
    """Markdown: a row per scenario and contender; **bold** where a bar is missed."""
    def number(value):
        return "never" if math.isinf(value) else f"{value:,.0f}"

    columns = [
        ("polite answered in time", "success", lambda v: f"{math.floor(v * 1000) / 10:.1f} %", lambda v, _: v < SUCCESS_MIN),
        ("job status p99, ms", "job_p99_ms", number, lambda v, s: v > max(P99_MS_MAX, P99_CALM_TIMES_MAX * s["calm_job_p99_ms"])),
        ("`ray list actors` p99, ms", "actors_p99_ms", number, lambda v, _: False),
        ("version p99, ms", "version_p99_ms", number, lambda v, _: v > VERSION_P99_MS_MAX),
        ("slowest p99 / its bar", "p99_over_bar", lambda v: "-" if math.isinf(v) else f"{v:.2f}", lambda v, _: v > 1),
        ("head healthy after, s", "healthy_s", lambda v: f"> {PATIENCE_S}" if math.isinf(v) else f"{v:.1f}", lambda v, _: v > HEALTHY_S_MAX),
        ("polite shed", "polite_sheds", number, lambda v, _: v > 0),
        ("flood got", "flood_in_time", number, lambda v, _: False),
        ("of", "flood_due", number, lambda v, _: False),
        ("deepest backlog", "backlog", number, lambda v, _: False),
        ("head CPU s", "head_cpu_s", number, lambda v, _: False),
        ("own CPU s", "contender_cpu_s", lambda v: f"{v:.1f}", lambda v, _: False),
    ]
    lines = ["| scenario | in front | " + " | ".join(title for title, *_ in columns) + " |", "|---" * (len(columns) + 2) + "|"]
    for scenario, name in dict.fromkeys((r["scenario"], r["contender"]) for r in sorted(everything, key=lambda r: r["scenario"])):
        figures = [summary(r) for r in everything if (r["scenario"], r["contender"]) == (scenario, name)]
        cells = []
        for _, key, form, missed in columns:
            if any(f[key] is None for f in figures):
                cells.append("")
                continue
            text = middle([f[key] for f in figures], form)
            bad = statistics.median(missed(f[key], f) for f in figures) > 0.5
            cells.append(f"**{text}**" if bad else text)
        lines.append(f"| {scenario} | {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main():
    plans = sorted(path.stem for path in (HERE / "real").glob("[a-z]-*.toml"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenarios", default=",".join(plans), help="all of them")
    parser.add_argument("--contenders", default="nothing,rayguard", help=", ".join(commands(Path("."))))
    parser.add_argument("--jobs", type=int, default=119, help="finished jobs in the head's history")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "target/protection")
    parser.add_argument("--read", type=Path, nargs="+", metavar="JSON", help="measures nothing: one table of earlier runs' real-ray.json")
    options = parser.parse_args()
    if options.read:
        print(table([result for path in options.read for result in json.loads(path.read_text())]))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    everything = []
    with tempfile.TemporaryDirectory(prefix="protection-") as work:
        for scenario in options.scenarios.split(","):
            first = []
            for number in range(options.rounds):
                for name in options.contenders.split(","):
                    trace = None
                    if name == "rayguard":
                        trace = options.out.resolve() / f"{scenario}-{number + 1}.rec"
                        trace.unlink(missing_ok=True)
                    result = cell(scenario, name, options, work, trace)
                    print(row(result), flush=True)
                    everything.append(result)
                    first += [result] if number == 0 else []
                    (options.out / "real-ray.json").write_text(json.dumps(everything))
            notes = tomllib.loads((HERE / "real" / f"{scenario}.toml").read_text())["notes"]
            if "flood" in notes:
                (options.out / f"{scenario}.svg").write_text(plot(notes, first, VICTIMS.get(scenario, "job status")))
            if notes.get("backlog"):
                (options.out / f"{scenario}-backlog.svg").write_text(plot_backlog(notes, first))
    print("\n" + table(everything))
    (options.out / "real-ray.md").write_text(table(everything) + "\n")
    if traces := sorted(options.out.glob("*.rec")):
        print("\n" + simulated.table(traces))


if __name__ == "__main__":
    main()
