"""What a head has behind it when a measurement begins: finished tasks, finished jobs, logs.

A head without a past answers everything at once. The tasks and the first jobs are really run; the other
finished jobs are records put into Ray's own store, equal to the ones it writes, because a hundred
submissions would take longer than the measurement.
"""

import json
import subprocess
import time
import urllib.request

from head import wait_until

TASKS = "import ray; ray.init(); f = ray.remote(lambda: None); ray.get([f.remote() for _ in range(1000)])"
LOG_MIB = 60
# By the head's own Python: any version's.
COPIES = """
import sys
from ray._raylet import GcsClient
from ray._private.ray_constants import KV_NAMESPACE_JOB
from ray.dashboard.modules.job.common import JobInfoStorageClient

address, job, count = sys.argv[1:]
key = lambda id: JobInfoStorageClient.JOB_DATA_KEY.format(job_id=id).encode()
gcs = GcsClient(address=address)
model = gcs.internal_kv_get(key(job), KV_NAMESPACE_JOB)
for n in range(int(count)):
    gcs.internal_kv_put(key(f"raysubmit_past{n:012}"), model, True, KV_NAMESPACE_JOB)
"""
LINES = f"line = 'x' * 1023; [print(line) for _ in range({LOG_MIB * 1024})]"


class History:
    """The jobs of a head, by the part they play in a plan."""

    def __init__(self, head):
        self.head = head
        self.ids = {}

    def ask(self, path, body=None):
        request = urllib.request.Request(
            f"{self.head.url}{path}",
            data=json.dumps(body).encode() if body is not None else None,
            headers={"Content-Type": "application/json"} if body is not None else {},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def status(self, job):
        return self.ask(f"/api/jobs/{job}")["status"]

    def run(self, entrypoint, until, **more):
        job = self.ask("/api/jobs/", {"entrypoint": entrypoint, **more})["submission_id"]
        wait_until(entrypoint, lambda: self.status(job) in (*until, "FAILED", "STOPPED"), 180, 0.5)
        if (status := self.status(job)) not in until:
            raise RuntimeError(f"the history could not be made: {status}: {self.ask(f'/api/jobs/{job}/logs')}")
        return job

    def make(self, jobs, wanted):
        """Runs what the plan names (`job` always) and records finished jobs up to `jobs`."""
        self.ids["job"] = self.run(f'python -c "{TASKS}"', ("SUCCEEDED",))
        if "talker" in wanted:
            self.ids["talker"] = self.run(f'python -c "{LINES}"', ("SUCCEEDED",))
        if "quiet" in wanted:
            self.ids["quiet"] = self.run("sleep 600", ("RUNNING",))
        self.record(max(0, jobs - len(self.ids)))
        time.sleep(2)
        return self.ids

    def record(self, count):
        command = [str(self.head.bin / "python"), "-c", COPIES, f"127.0.0.1:{self.head.ports['gcs']}", self.ids["job"], str(count)]
        subprocess.run(command, env=self.head.env, check=True, timeout=120)
