"""Ray's job commands and SDK work through the proxy as they do without it."""

import re
import threading
import time

import pytest
from clients import Clients
from proxy import Proxy, ask
from head import wait_until


@pytest.fixture
def client(head, proxy, monkeypatch):
    for name, value in head.env.items():
        if name.startswith("RAY_"):
            monkeypatch.setenv(name, value)
    from ray.job_submission import JobSubmissionClient

    return JobSubmissionClient(proxy.url)


def test_submit_uploads_the_working_dir_and_tails_the_log(head, proxy, tmp_path):
    (tmp_path / "main.py").write_text(
        "import time\nfrom part import WORD\nfor i in range(3):\n    print(WORD, i, flush=True)\n    time.sleep(0.3)\n"
    )
    (tmp_path / "part.py").write_text("WORD = 'carried'\n")
    (tmp_path / "ballast.bin").write_bytes(bytes(range(256)) * 8_000)
    said = head.run(
        "ray", "job", "submit", "--address", proxy.url, "--working-dir", str(tmp_path), "--", "python", "main.py"
    )
    assert "Uploading package" in said
    assert re.findall(r"carried (\d)", said) == ["0", "1", "2"]
    assert "succeeded" in said


def test_list_status_and_logs_say_what_they_say_without_the_proxy(head, proxy, finished_job):
    for command in (["list"], ["status", finished_job], ["logs", finished_job]):
        direct = head.run("ray", "job", command[0], "--address", head.url, *command[1:])
        through = head.run("ray", "job", command[0], "--address", proxy.url, *command[1:])
        assert without_times(through).replace(proxy.url, head.url) == without_times(direct)
    assert "one line for the log" in through


def test_stop_and_delete_reach_the_job(head, proxy):
    job = "raysubmit_to_stop"
    head.run(
        "ray", "job", "submit", "--no-wait", "--address", proxy.url, "--submission-id", job, "--", "sleep", "600"
    )
    said = head.run("ray", "job", "stop", "--address", proxy.url, job)
    assert "was stopped" in said or "STOPPED" in said, said
    assert "deleted" in head.run("ray", "job", "delete", "--address", proxy.url, job)


def test_the_sdk_sees_a_job_through_its_life(client):
    job = client.submit_job(entrypoint="echo from the sdk", metadata={"who": "test"})
    wait_until("the job's end", lambda: client.get_job_status(job).is_terminal(), 60)
    assert client.get_job_status(job) == "SUCCEEDED"
    assert "from the sdk" in client.get_job_logs(job)
    assert client.get_job_info(job).metadata["who"] == "test"
    assert job in [found.submission_id for found in client.list_jobs()]
    assert client.delete_job(job)


def test_a_tail_delivers_lines_as_they_are_written(client):
    job = client.submit_job(entrypoint="python -u -c \"import time\nfor i in range(8):\n print('line', i); time.sleep(0.7)\"")
    came = []

    def follow():
        import asyncio

        async def tail():
            async for lines in client.tail_job_logs(job):
                came.extend((time.monotonic(), line) for line in re.findall(r"line \d", lines))

        asyncio.run(tail())

    follower = threading.Thread(target=follow, daemon=True)
    follower.start()
    follower.join(60)
    assert not follower.is_alive()
    assert [line for _, line in came] == [f"line {i}" for i in range(8)]
    # Ray looks at the file once a second and the job writes for 4.9 s: whenever Ray's first look falls, what
    # it sees after it takes three more looks. (Four lines could fall to two looks, a hair less than a second apart.)
    assert came[-1][0] - came[0][0] > 1.0, "lines must come while the job runs, not all at its end"


def test_readers_of_one_log_share_rays_slot_and_each_gets_the_whole_log(proxy, client):
    import asyncio

    # Lines, then silence: a tail that Ray would not notice the end of.
    job = client.submit_job(
        entrypoint="python -u -c \"import time\nfor i in range(3): print('line', i)\ntime.sleep(25); print('last')\""
    )

    async def read(until, came):
        async for lines in client.tail_job_logs(job):
            came.append(lines)
            if until in "".join(came):
                return

    def tails():
        page = ask(f"http://127.0.0.1:{proxy.admin_port}", path="/metrics").body.decode()
        return float(re.search(r'rayguard_in_flight\{class="log-tail"[^}]*\} (\S+)', page)[1])

    async def four_readers():
        logs = [[] for _ in range(4)]
        await asyncio.wait_for(read("line 2", logs[0]), 60)  # leads, and leaves
        late = [asyncio.ensure_future(read("last", log)) for log in logs[1:3]]
        await asyncio.wait_for(read("line 2", logs[3]), 20)
        slots = await asyncio.get_running_loop().run_in_executor(None, tails)
        await asyncio.wait_for(asyncio.gather(*late), 60)
        return slots, ["".join(log) for log in logs]

    # Ray keeps the slot of a tail that has ended for up to 10 s.
    wait_until("the tails before are over", lambda: tails() == 0, 30)
    slots, logs = asyncio.run(four_readers())
    assert slots == 1
    for log in logs:
        assert re.findall(r"line \d", log) == ["line 0", "line 1", "line 2"]
    assert "last" in logs[1] and logs[1] == logs[2]
    wait_until("Ray's slot is free", lambda: tails() == 0, 30)


def without_times(text):
    return re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+|\x1b\[[0-9;]*m", "", text)


def test_garbage_by_the_hundred_does_not_keep_a_submitter_out(head):
    """What Ray refuses at once costs it next to nothing, and takes as much of the rate as what it runs."""
    json = {"User-Agent": "python-requests/2.34.2", "Content-Type": "application/json"}
    # As shipped, a submission waits for its turn for five minutes: a short queue tells a flood sooner.
    scarce = '[class.job-submit]\nrate = { initial = "2/s", min = "2/s", max = "2/s", burst = 2 }\nqueue = { len = 16, wait = "15s" }\n'
    with Proxy(head, scarce) as proxy:
        garbage = Clients(
            proxy.url, path="/api/jobs/", count=30, timeout_s=30, headers=json, address="127.0.0.2", body=b'{"nothing": 1}'
        )
        with garbage:
            time.sleep(5)
            fates = []
            for _ in range(8):
                fates.append(ask(proxy.url, "POST", "/api/jobs/", json, b'{"entrypoint": "true"}').status)
                time.sleep(1.0)
    assert fates == [200] * 8, (fates, garbage.fates())
    assert garbage.fates().keys() & {429, 503}, "there was a flood"
