"""A real Ray head under a flood, with nothing in front and with each contender.

    python3 benches/protection/real_ray.py [--scenarios a-tasks,b-job-list] [--contenders nothing,rayguard]

To be run by a Python that has Ray (see tests/ray/requirements.txt). Each cell begins with a new
head, which is given a history first: 1,000 finished tasks and some finished jobs. Prints the
polite clients' figures before, during and after the flood, writes them as JSON, and draws one
plot per scenario.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
import tomllib
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "tests" / "ray"))

from contenders import HEAD_PORT, HERE, ROOT, Contender, commands, find_rayguard
from head import Head, wait_until

TASKS = "import ray; ray.init(); f = ray.remote(lambda: None); ray.get([f.remote() for _ in range(1000)])"


def ask(path, body=None):
    request = urllib.request.Request(
        f"http://127.0.0.1:{HEAD_PORT}{path}",
        data=json.dumps(body).encode() if body is not None else None,
        headers={"Content-Type": "application/json"} if body is not None else {},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def give_history(jobs):
    """Finished tasks and jobs, as a day leaves them behind; returns the id of one job."""
    first = ask("/api/jobs/", {"entrypoint": f'python -c "{TASKS}"'})["submission_id"]
    wait_until("a job that runs 1,000 tasks", lambda: ask(f"/api/jobs/{first}")["status"] in ("SUCCEEDED", "FAILED"), 120, 1)
    if (status := ask(f"/api/jobs/{first}")["status"]) != "SUCCEEDED":
        raise RuntimeError(f"the history could not be made: {status}: {ask(f'/api/jobs/{first}/logs')}")
    ids = [ask("/api/jobs/", {"entrypoint": "true"})["submission_id"] for _ in range(jobs)]
    wait_until(
        "the jobs' end",
        lambda: all(job["status"] in ("SUCCEEDED", "FAILED") for job in ask("/api/jobs/") if job["submission_id"] in ids),
        300,
        2,
    )
    return first


def cell(scenario, name, jobs, work):
    text = (HERE / "real" / f"{scenario}.toml").read_text()
    head = Head(cpus=2)
    head.ports["dashboard"] = HEAD_PORT
    head.arguments = ["--min-worker-port=20000", "--max-worker-port=24999"]  # clear of the bench's ports
    with head:
        job = give_history(jobs)
        plan = Path(work) / f"{scenario}.toml"
        if "{quiet}" in text:
            ask("/api/jobs/", {"submission_id": "raysubmit_quiet", "entrypoint": "sleep 300"})
            wait_until("a quiet job", lambda: ask("/api/jobs/raysubmit_quiet")["status"] == "RUNNING", 60, 1)
        plan.write_text(text.replace("{job}", job).replace("{quiet}", "raysubmit_quiet"))
        with Contender(name, work) as contender:
            time.sleep(8)  # its first readings
            cpu_before, _ = head.usage()
            load = [find_rayguard(), "load", str(plan), "--target", contender.target]
            done = subprocess.run(load, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=200)
            if done.returncode:
                raise RuntimeError(done.stderr.decode())
            cpu_after, rss = head.usage()
            cpu, own = contender.usage()
    report = json.loads(done.stdout)
    return {
        "scenario": scenario,
        "contender": name,
        "windows": {window["name"]: window["streams"] for window in report["windows"]},
        "seconds": report["seconds"],
        "head_cpu_s": cpu_after - cpu_before,
        "head_rss_mib": rss,
        "contender_cpu_s": cpu,
        "contender_rss_mib": own,
        "late_p99_ms": report["late_p99_ms"],
    }


def line(result):
    """The figures of a cell, a row per polite stream."""
    rows = []
    for stream in result["windows"]["flood"]:
        if stream == "flood":
            continue
        figures = [result["windows"][window].get(stream, {}) for window in ("calm", "flood", "after")]
        text = "  ".join(
            f"{window} {f.get('in_time_share', 0) * 100:5.1f} % p99 {f.get('p99_ms') or math.nan:8.0f} ms"
            for window, f in zip(("calm", "flood", "after"), figures)
        )
        rows.append(f"{result['scenario']:12} {result['contender']:14} {stream:16} {text}")
    return "\n".join(rows)


# === plot ===

COLOURS = {"nothing": "#c0392b", "rayguard": "#1f7a4d", "nginx": "#8e8e93", "haproxy": "#b08900", "envoy-adaptive": "#5b5bd6"}
WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 760, 300, 64, 46, 44
LOW_MS, HIGH_MS = 1.0, 30_000.0


def y_of(ms):
    share = (math.log10(min(max(ms, LOW_MS), HIGH_MS)) - math.log10(LOW_MS)) / (math.log10(HIGH_MS) - math.log10(LOW_MS))
    return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def x_of(second, length):
    return LEFT + second / length * (WIDTH - LEFT - 16)


def plot(scenario, results, stream):
    """One victim's slowest answer per second, by contender; a cross where one was not answered in time."""
    notes = tomllib.loads((HERE / "real" / f"{scenario}.toml").read_text())["notes"]
    length = max(len(result["seconds"][stream]["due"]) for result in results)
    begin, end = notes["flood"]
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<rect x="{x_of(begin, length):.1f}" y="{TOP}" width="{x_of(end, length) - x_of(begin, length):.1f}" height="{HEIGHT - TOP - BOTTOM}" fill="#f4ece4"/>',
        f'<text x="{LEFT}" y="18" font-size="14" font-weight="bold" fill="#222">{stream}, while somebody floods a real Ray head</text>',
        f'<text x="{LEFT}" y="35" fill="#555">{notes["title"]} (shaded). Slowest answer in each second; a cross is a request not answered in time.</text>',
    ]
    for ms, label in ((1, "1 ms"), (10, "10 ms"), (100, "100 ms"), (1000, "1 s"), (10000, "10 s")):
        out.append(f'<line x1="{LEFT}" x2="{WIDTH - 16}" y1="{y_of(ms):.1f}" y2="{y_of(ms):.1f}" stroke="#e2e2e2"/>')
        out.append(f'<text x="{LEFT - 8}" y="{y_of(ms) + 4:.1f}" text-anchor="end" fill="#555">{label}</text>')
    for second in range(0, length + 1, 5):
        out.append(f'<text x="{x_of(second, length):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle" fill="#555">{second}</text>')
    out.append(f'<text x="{WIDTH - 16}" y="{HEIGHT - 8}" text-anchor="end" fill="#555">seconds</text>')
    for place, result in enumerate(results):
        colour = COLOURS.get(result["contender"], "#444")
        seconds = result["seconds"][stream]
        points = [(x_of(s + 0.5, length), y_of(ms)) for s, ms in enumerate(seconds["p99_ms"]) if ms is not None]
        out.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>')
        for second, (due, in_time) in enumerate(zip(seconds["due"], seconds["in_time"])):
            if in_time < due:
                x, y = x_of(second + 0.5, length), TOP + 6 + 9 * place
                out.append(f'<path d="M{x - 3:.1f} {y - 3}l6 6m0 -6l-6 6" stroke="{colour}" stroke-width="1.5"/>')
        x = LEFT + 150 * place
        label = "without" if result["contender"] == "nothing" else f"with {result['contender']}"
        out.append(f'<line x1="{x}" x2="{x + 22}" y1="{HEIGHT - 12}" y2="{HEIGHT - 12}" stroke="{colour}" stroke-width="3"/>')
        out.append(f'<text x="{x + 28}" y="{HEIGHT - 8}" fill="#222">{label}</text>')
    out.append("</svg>")
    return "\n".join(out)


VICTIMS = {"a-tasks": "ray list actors"}  # of the others: job status


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenarios", default="a-tasks,b-job-list", help=", ".join(sorted(p.stem for p in (HERE / "real").glob("*.toml"))))
    parser.add_argument("--contenders", default="nothing,rayguard", help=", ".join(commands(Path("."))))
    parser.add_argument("--jobs", type=int, default=60, help="finished jobs in the head's history")
    parser.add_argument("--out", type=Path, default=ROOT / "target/protection")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    everything = []
    with tempfile.TemporaryDirectory(prefix="protection-") as work:
        for scenario in options.scenarios.split(","):
            results = []
            for name in options.contenders.split(","):
                results.append(cell(scenario, name, options.jobs, work))
                print(line(results[-1]), flush=True)
                everything.append(results[-1])
                (options.out / "real-ray.json").write_text(json.dumps(everything))
            (options.out / f"{scenario}.svg").write_text(plot(scenario, results, VICTIMS.get(scenario, "job status")))


if __name__ == "__main__":
    main()
