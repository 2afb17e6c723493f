"""Ray Client connections, all at once: how many get a session, and how long that takes.

    python clients.py HOST:PORT COUNT HOLD_SECONDS

Run by a Python that has Ray. Prints one JSON object.
"""

import json
import sys
import threading
import time

from ray.job_config import JobConfig
from ray.util.client.worker import Worker


def connect(address, hold_s, results, place):
    began = time.monotonic()
    worker = None
    try:
        worker = Worker(address, connection_retries=3)
        worker._server_init(JobConfig(), {})
        results[place] = ("connected", time.monotonic() - began)
        time.sleep(hold_s)
    except Exception as problem:  # whatever Ray raises is the result
        results[place] = (type(problem).__name__ + ": " + str(problem)[:80], time.monotonic() - began)
    finally:
        if worker is not None:
            try:
                worker.close()
            except Exception as problem:
                print(problem, file=sys.stderr)


def main():
    address, count, hold_s = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    results = [("no answer", None)] * count
    threads = [threading.Thread(target=connect, args=(address, hold_s, results, n), daemon=True) for n in range(count)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + 60 + hold_s
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    waits = sorted(seconds for what, seconds in results if what == "connected")
    others = {}
    for what, _ in results:
        if what != "connected":
            others[what] = others.get(what, 0) + 1
    print(json.dumps({"connected": len(waits), "of": count, "slowest_s": waits[-1] if waits else None, "others": others}), flush=True)


if __name__ == "__main__":
    main()
