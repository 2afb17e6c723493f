"""What a head has behind it when a measurement begins: finished tasks, finished jobs, logs.

A head without a past answers everything at once. The tasks and the first jobs are really run; the other
finished jobs are records put into Ray's own store, equal to the ones it writes, because a hundred
submissions would take longer than the measurement.
"""

import asyncio
import dataclasses
import json
import time
import urllib.request

from head import wait_until

TASKS = "import ray; ray.init(); f = ray.remote(lambda: None); ray.get([f.remote() for _ in range(1000)])"
LOG_MIB = 60
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
        asyncio.run(self.record(jobs - len(self.ids)))
        time.sleep(2)
        return self.ids

    async def record(self, count):
        from ray.dashboard.modules.job.common import JobInfoStorageClient

        try:  # until 2.4x its asynchronous client was another one
            from ray._private.gcs_aio_client import GcsAioClient as GcsClient
        except ImportError:
            from ray._raylet import GcsClient

        store = JobInfoStorageClient(GcsClient(address=f"127.0.0.1:{self.head.ports['gcs']}"), str(self.head.directory))
        model = await store.get_info(self.ids["job"])
        for n in range(max(0, count)):
            await store.put_info(f"raysubmit_past{n:012}", dataclasses.replace(model))
