"""Runs Ray's commands and SDK calls against an address and prints what each says, as JSON; by the Python of any Ray.

    python commands.py reads http://127.0.0.1:8265 '{"job": "raysubmit_1", "actor": "...", "node": "..."}'

`reads` change nothing, so that what is listed is the same the next time; `writes` begin and end jobs; `deploy` deploys
what `application` names, and `shutdown` ends Serve. `names` asks no server: it says which commands and calls this Ray
has, and which of them are asked here. `ray logs` asks the GCS where the dashboard is and goes there, past any
proxy: here it gets the address instead, as where the GCS knows the proxy's.
"""

import asyncio
import inspect
import json
import os
import sys
import time

import click
import yaml
from click.testing import CliRunner

kind, address, ids = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
os.environ["COLUMNS"] = "200"

from ray.dashboard.modules.serve.sdk import ServeSubmissionClient  # noqa: E402
from ray.job_submission import JobSubmissionClient  # noqa: E402
from ray.scripts.scripts import cli  # noqa: E402
from ray.serve.scripts import cli as serve  # noqa: E402
from ray.util import state  # noqa: E402
from ray.util.state import api  # noqa: E402

api.ray_address_to_api_server_url = lambda _: address

LISTED = ["actors", "jobs", "nodes", "workers", "tasks", "objects", "placement-groups", "runtime-envs", "cluster-events"]
AT = ["--address", address]
READS = [
    *(["list", what, *AT, "--limit", "1000"] for what in LISTED),
    ["list", "tasks", *AT, "--filter", "state=FINISHED", "--limit", "5", "--detail"],
    ["list", "actors", *AT, "--format", "json"],
    ["list", "nodes", *AT, "--filter", "no_such_key=1"],
    *(["summary", what, *AT] for what in ("tasks", "actors", "objects")),
    ["get", "actors", ids["actor"], *AT],
    *(["get", f"{what}s", ids[what], *AT] for what in ("node", "task", "worker")),
    ["get", "placement-groups", "0" * 36, *AT],
    ["get", "objects", "0" * 56, *AT],
    ["job", "list", *AT],
    ["job", "status", *AT, ids["job"]],
    ["job", "logs", *AT, ids["job"]],
    ["job", "logs", "--follow", *AT, ids["job"]],
    ["job", "status", *AT, "raysubmit_absent"],
    ["job", "stop", *AT, ids["job"]],
    ["logs", "cluster", "--node-id", ids["node"]],
    ["logs", "cluster", "no_such_*", "--node-id", ids["node"]],
    ["logs", "cluster", f"job-driver-{ids['job']}.log", "--node-id", ids["node"], "--tail", "-1"],
    *(["logs", what, "--id", ids[what], "--address", ids["gcs"]] for what in ("job", "actor", "task")),
    ["logs", "worker", "--pid", ids["pid"], "--node-id", ids["node"], "--address", ids["gcs"]],
]
SERVE = [["serve", what, "--address", address] for what in ("status", "config")]
# Each job has an id of its own: its supervisor outlives it by a little.
FIRST, SECOND, THIRD = (f"{ids['new']}_{at}" for at in (1, 2, 3))
WRITES = [
    ["job", "submit", *AT, "--submission-id", FIRST, "--working-dir", ids["directory"], "--", "python", "main.py"],
    ["job", "status", *AT, FIRST],
    ["job", "delete", *AT, FIRST],
    ["job", "submit", *AT, "--no-wait", "--submission-id", SECOND, "--", "sleep", "600"],
    ["job", "stop", *AT, SECOND],
    ["job", "delete", *AT, SECOND],
]


def run(command):
    group, command = (serve, command[1:]) if command[0] == "serve" else (cli, command)
    done = CliRunner().invoke(group, command)
    return [done.exit_code, done.output, repr(done.exception)]


def as_json(each):
    """What stands in it; the order of its keys is of the moment."""
    return json.dumps(each, sort_keys=True, default=lambda inner: vars(inner) if hasattr(inner, "__dict__") else repr(inner))


def reads(client):
    yield "version", client.get_version()
    yield "list", sorted(repr(each) for each in client.list_jobs())
    yield "info", repr(client.get_job_info(ids["job"]))
    yield "status", repr(client.get_job_status(ids["job"]))
    yield "logs", client.get_job_logs(ids["job"])
    yield "tail", asyncio.run(tail(client, ids["job"]))
    for what in LISTED:
        listed = getattr(state, f"list_{what.replace('-', '_')}")(address=address, limit=1000)
        yield f"state.list_{what}", sorted(as_json(each) for each in listed)
    for what in ("actor", "node", "task", "worker"):
        yield f"state.get_{what}", as_json(getattr(state, f"get_{what}")(ids[what], address=address))
    for what, each in (("job", ids["job"]), ("objects", "0" * 56), ("placement_group", "0" * 36)):
        yield f"state.get_{what}", as_json(getattr(state, f"get_{what}")(each, address=address))
    for what in ("tasks", "actors", "objects"):
        yield f"state.summarize_{what}", as_json(getattr(state, f"summarize_{what}")(address=address))
    yield "state.list_logs", sorted(f"{of} {each}" for of, files in state.list_logs(node_id=ids["node"]).items() for each in files)
    yield "state.get_log", list(state.get_log(node_id=ids["node"], filename=f"job-driver-{ids['job']}.log"))
    try:
        client.get_job_info("raysubmit_absent")
    except RuntimeError as error:
        yield "absent", repr(error)


async def tail(client, job):
    return "".join([lines async for lines in client.tail_job_logs(job)])


def writes(client):
    yield "submit", client.submit_job(entrypoint="sleep 600", submission_id=THIRD, metadata={"who": "test"})
    yield "stop", client.stop_job(THIRD)
    while not client.get_job_status(THIRD).is_terminal():
        pass
    yield "delete", client.delete_job(THIRD)


def deploy(_):
    client = ServeSubmissionClient(address)
    with open(ids["application"]) as file:
        yield "deploy_applications", client.deploy_applications(yaml.safe_load(file))
    while {each["status"] for each in client.get_serve_details()["applications"].values()} != {"RUNNING"}:
        time.sleep(0.2)
    for what in SERVE:
        yield " ".join(what), run(what)
    yield "version of Serve's API", client.get_version()


def shutdown(_):
    client = ServeSubmissionClient(address)
    yield "delete_applications", client.delete_applications()
    while left := client.get_serve_details()["applications"]:
        time.sleep(0.2)
    yield "left", left


DEPLOY = [["serve", "deploy", ids.get("application", ""), "--address", address]]
SHUTDOWN = [["serve", "shutdown", "-y", "--address", address]]


def leaves(group, *words):
    """Every command of a group and the groups in it, in full."""
    for name, each in group.commands.items():
        if isinstance(each, click.Group):
            yield from leaves(each, *words, name)
        else:
            yield " ".join((*words, name))


def names(_):
    # From 2.60 on Serve's commands are Ray's too.
    has = {name.removeprefix("ray ") if name.startswith("ray serve ") else name for name in (*leaves(cli, "ray"), *leaves(serve, "serve"))}
    asked = [" ".join(each if each[0] == "serve" else ["ray", *each]) for commands, _ in KINDS.values() for each in commands]
    yield "commands", sorted(has)
    yield "not asked", sorted(name for name in has if not any(f"{each} ".startswith(f"{name} ") for each in asked))
    yield "calls", [
        *(f"{of.__name__}.{name}" for of in (JobSubmissionClient, ServeSubmissionClient) for name, _ in inspect.getmembers(of, inspect.isfunction) if name[0] != "_"),
        *(f"state.{name}" for name, _ in inspect.getmembers(state, inspect.isfunction)),
    ]


KINDS = {"reads": (READS + SERVE, reads), "writes": (WRITES, writes), "deploy": (DEPLOY, deploy), "shutdown": (SHUTDOWN, shutdown)}
commands, calls = KINDS.get(kind, ((), names))
said = {" ".join(each): run(each) for each in commands}
print("\n" + json.dumps({**said, **dict(calls(kind != "names" and JobSubmissionClient(address)))}))
