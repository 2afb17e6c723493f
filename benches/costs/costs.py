"""What each route costs a head of some version, and what it holds up meanwhile.

    python3 benches/costs/costs.py [--versions 2.9.3,2.44.1] [--jobs 120] [--tasks 1000] [--json costs.json]

To be run by the Python that has the tests' Ray (tests/ray/requirements.txt); each version is installed in an environment
of its own. A head is given a history of tasks and jobs, and then, with nothing in front and no other client:

- service time: each route is asked some times, one after the other; the median and the largest;
- blocking: one client asks a heavy route without end, and another asks light ones; their median then, over theirs alone.

Times are of this machine and this moment; what carries over is their order and the factors.
"""

import argparse
import json
import statistics
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "tests" / "ray"))

import versions
from head import Head, wait_until

ROUTES = {
    "version": "/api/version",
    "gcs health": "/api/gcs_healthz",
    "job list": "/api/jobs/",
    "job status": "/api/jobs/{job}",
    "job logs": "/api/jobs/{job}/logs",
    "tasks, 100": "/api/v0/tasks?limit=100",
    "tasks, all": "/api/v0/tasks?limit=10000",
    "tasks, all, in detail": "/api/v0/tasks?limit=10000&detail=1",
    "tasks, summary": "/api/v0/tasks/summarize",
    "actors": "/api/v0/actors?limit=10000",
    "workers": "/api/v0/workers?limit=10000",
    "objects": "/api/v0/objects?limit=10000",
    "nodes": "/nodes?view=summary",
    "actors of the page": "/logical/actors",
    "cluster status": "/api/cluster_status",
    "Serve applications": "/api/serve/applications/",
}
HEAVY = ["job list", "tasks, all, in detail", "tasks, summary", "nodes"]
LIGHT = ["version", "job status", "gcs health"]

WORK = """
import sys, ray
ray.init(address=sys.argv[1], logging_level="ERROR")
@ray.remote(num_cpus=0.1)
def square(x):
    return x * x
print(sum(ray.get([square.remote(i) for i in range(int(sys.argv[2]))])))
"""


def ask(head, path, body=None, timeout=60):
    request = urllib.request.Request(head.url + path, data=body, headers={"Content-Type": "application/json"})
    begin = time.monotonic()
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            text, status = answer.read(), answer.status
    except urllib.error.HTTPError as error:
        text, status = error.read(), error.code
    return status, (time.monotonic() - begin) * 1000, text


def give_history(head, tasks, jobs):
    """A finished driver's tasks, and finished jobs; the id of one."""
    work = head.directory / "work.py"
    work.write_text(WORK)
    command = [str(head.bin / "python"), str(work), f"127.0.0.1:{head.ports['gcs']}", str(tasks)]
    subprocess.run(command, env=head.env, check=True, capture_output=True, timeout=600)

    def job(number):
        name = f"job-{number}"
        body = json.dumps({"entrypoint": "true", "submission_id": name}).encode()
        status, _, text = ask(head, "/api/jobs/", body, 120)
        assert status == 200, text
        over = lambda: json.loads(ask(head, f"/api/jobs/{name}")[2])["status"] in ("SUCCEEDED", "FAILED")  # noqa: E731
        wait_until(name, over, 300, 1.0)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(job, range(jobs)))
    return "job-0"


def service_times(head, job, count):
    found = {}
    for name, path in ROUTES.items():
        path = path.format(job=job)
        status, _, text = ask(head, path)
        if status != 200:
            continue  # this version has no such route
        times = [ask(head, path)[1] for _ in range(count)]
        found[name] = {"median": statistics.median(times), "max": max(times), "kB": len(text) / 1000}
    return found


def blocking(head, job, count):
    """How many times longer the light routes take while one client asks a heavy one without end."""
    light = lambda: {name: statistics.median(ask(head, ROUTES[name].format(job=job))[1] for _ in range(count)) for name in LIGHT}  # noqa: E731
    alone = light()
    found = {}
    for heavy in HEAVY:
        over = threading.Event()

        def hammer(path=ROUTES[heavy], over=over):
            while not over.is_set():
                ask(head, path)

        flood = threading.Thread(target=hammer)
        flood.start()
        time.sleep(1.0)  # until it is under way
        beside = light()
        over.set()
        flood.join()
        found[heavy] = {name: beside[name] / alone[name] for name in LIGHT}
    return found


def table(title, columns, rows):
    print(f"\n{title}\n\n| | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for name, cells in rows.items():
        print(f"| {name} | {' | '.join(cells)} |")


def main():
    options = argparse.ArgumentParser()
    options.add_argument("--versions", default="2.9.3,2.44.1")
    options.add_argument("--tasks", type=int, default=1000)
    options.add_argument("--jobs", type=int, default=120)
    options.add_argument("--count", type=int, default=15, help="how often each route is asked")
    options.add_argument("--json", type=Path)
    options = options.parse_args()
    found = {}
    for version in options.versions.split(","):
        with Head(bin=versions.install(version)) as head:
            job = give_history(head, options.tasks, options.jobs)
            time.sleep(15.0)  # workers that idle end, and the GCS reports
            found[version] = {"times": service_times(head, job, options.count), "blocks": blocking(head, job, options.count)}
        print(f"{version}: done", file=sys.stderr, flush=True)
        if options.json:
            options.json.write_text(json.dumps(found, indent=1))
    cell = lambda times, name: f"{times[name]['median']:.0f} ({times[name]['max']:.0f})" if name in times else "-"  # noqa: E731
    table("Service time in ms: median (largest)", list(found), {name: [cell(each["times"], name) for each in found.values()] for name in ROUTES})
    heads = [f"{version}: {name}" for version in found for name in LIGHT]
    table(
        "How many times longer it takes beside one client who asks",
        heads,
        {heavy: [f"{each['blocks'][heavy][name]:.1f}" for each in found.values() for name in LIGHT] for heavy in HEAVY},
    )


if __name__ == "__main__":
    main()
