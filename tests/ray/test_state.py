"""Ray's state commands work through the door as they do without it."""

import json

import pytest
import yaml


@pytest.mark.parametrize("what", ["tasks", "actors", "nodes", "jobs", "workers"])
def test_list_names_the_same_things(head, door, work, what):
    listed = [
        json.loads(head.run("ray", "list", what, "--address", url, "--format", "json", "--limit", "1000"))
        for url in (head.url, door.url)
    ]
    key = {"tasks": "task_id", "actors": "actor_id", "nodes": "node_id", "workers": "worker_id"}.get(what)
    direct, through = (sorted(entry[key] for entry in entries) if key else entries for entries in listed)
    assert through == direct
    assert direct


@pytest.mark.parametrize("what", ["tasks", "actors", "objects"])
def test_summary_counts_the_same_things(head, door, work, what):
    direct, through = (head.run("ray", "summary", what, "--address", url) for url in (head.url, door.url))
    assert without_stamp(through) == without_stamp(direct)
    assert "Stats" in direct


def test_get_shows_the_same_actor(head, door, work):
    actors = json.loads(head.run("ray", "list", "actors", "--address", door.url, "--format", "json"))
    actor = next(entry["actor_id"] for entry in actors if entry["state"] == "ALIVE")
    direct, through = (
        yaml.safe_load(head.run("ray", "get", "actors", actor, "--address", url)) for url in (head.url, door.url)
    )
    assert through == direct


def test_logs_of_the_cluster_come_through(head, door):
    """`ray logs` takes no http address; it goes where RAY_API_SERVER_ADDRESS says."""
    direct, through = (
        head.run("ray", "logs", "cluster", "gcs_server.out", "--tail", "-1", env={"RAY_API_SERVER_ADDRESS": url, "RAY_ADDRESS": f"127.0.0.1:{head.ports['gcs']}"})
        for url in (head.url, door.url)
    )
    # The log grows between the two calls: its beginning does not change.
    first = [text.splitlines()[:10] for text in (direct, through)]
    assert first[0] == first[1]
    assert len(first[0]) == 10


def without_stamp(text):
    return [line for line in text.splitlines() if not line.startswith("======")]
