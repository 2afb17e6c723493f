"""Ray's state commands work through the proxy as they do without it."""

import json
import socket

import pytest
import yaml
from proxy import ask
from faulty import TCP_REPAIR, may_vanish
from head import wait_until


@pytest.mark.parametrize("what", ["tasks", "actors", "nodes", "jobs", "workers"])
def test_list_names_the_same_things(head, proxy, work, what):
    listed = [
        json.loads(head.run("ray", "list", what, "--address", url, "--format", "json", "--limit", "1000"))
        for url in (head.url, proxy.url)
    ]
    key = {"tasks": "task_id", "actors": "actor_id", "nodes": "node_id", "workers": "worker_id"}.get(what)
    direct, through = (sorted(entry[key] for entry in entries) if key else entries for entries in listed)
    assert through == direct
    assert direct


@pytest.mark.parametrize("what", ["tasks", "actors", "objects"])
def test_summary_counts_the_same_things(head, proxy, work, what):
    direct, through = (head.run("ray", "summary", what, "--address", url) for url in (head.url, proxy.url))
    assert without_stamp(through) == without_stamp(direct)
    assert "Stats" in direct


def test_get_shows_the_same_actor(head, proxy, work):
    actors = json.loads(head.run("ray", "list", "actors", "--address", proxy.url, "--format", "json"))
    actor = next(entry["actor_id"] for entry in actors if entry["state"] == "ALIVE")
    direct, through = (
        yaml.safe_load(head.run("ray", "get", "actors", actor, "--address", url)) for url in (head.url, proxy.url)
    )
    assert through == direct


# `ray logs` asks the GCS where the dashboard is and goes there, past any proxy: here it gets the address.
LOGS = """
import sys
from ray.scripts.scripts import cli
from ray.util.state import api
url = sys.argv.pop(1)
api.ray_address_to_api_server_url = lambda _: url
cli()
"""


def test_logs_of_the_cluster_come_through(head, proxy):
    def passed():
        rows = {row["name"]: row["admitted"] for row in proxy.admin("/api/v1/state")["classes"]}
        return rows["state-logs"]

    before = passed()
    direct, through = (
        head.run("python", "-c", LOGS, url, "logs", "cluster", "gcs_server.out", "--tail", "-1", env={"RAY_ADDRESS": f"127.0.0.1:{head.ports['gcs']}"})
        for url in (head.url, proxy.url)
    )
    assert passed() > before
    # The log grows between the two calls: its beginning does not change.
    first = [text.splitlines()[:10] for text in (direct, through)]
    assert first[0] == first[1]
    assert len(first[0]) == 10


def test_followers_of_a_quiet_log_who_vanish_without_a_word_are_noticed(head, proxy):
    if not may_vanish():
        pytest.skip("only an administrator's sockets can vanish without a word")
    head.run("ray", "job", "submit", "--address", head.url, "--submission-id", "raysubmit_quiet", "--", "echo", "quiet from now on")
    node = json.loads(ask(head.url, path="/api/v0/nodes").body)["data"]["result"]["result"][0]["node_id"]
    target = f"/api/v0/logs/stream?node_id={node}&filename=job-driver-raysubmit_quiet.log&lines=10"
    before, readers = proxy.descriptors(), []
    for _ in range(10):
        one = socket.create_connection(("127.0.0.1", proxy.port), 20)
        one.sendall(f"GET {target} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        readers.append(one)
    for one in readers:
        came = b""
        while b"quiet from now on" not in came:
            came += one.recv(65536)
    # Towards each of them a line, and one to Ray.
    assert proxy.descriptors() >= before + 18
    for one in readers:
        one.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
        one.close()
    # Probes begin after twenty seconds, and nothing is ever written to that log again.
    wait_until("their lines are given back", lambda: proxy.descriptors() <= before + 12, 40)


def without_stamp(text):
    return [line for line in text.splitlines() if not line.startswith("======")]
