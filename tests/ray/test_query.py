"""What Ray reads of a query, and what it ignores.

`tests/fixtures/ray/query.txt` says which keys each route's handler reads (`*`: all of its values, else the first). It
is compared with the handlers of the installed Ray and of other versions, found in their sources; and real heads must
answer the same whatever is added that the table calls ignored.
"""

import importlib.util
import json
import random
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import versions
from conftest import finish_a_job, work_a_little
from handlers import TABLE, Handlers
from head import Head
from proxy import Proxy, ask
from test_differential import Line, Request, comparable
from test_versions import NIGHTLY, VERSIONS

INSTALLED = "installed"


def package(version):
    """The `ray` package of a version."""
    if version == INSTALLED:
        return Path(importlib.util.find_spec("ray").origin).parent
    return versions.package(versions.install(version))


@pytest.mark.parametrize("version", [INSTALLED, *VERSIONS])
def test_the_table_names_every_key_that_a_handler_reads(version):
    handlers = Handlers(package(version))
    gets = [method for method, _ in handlers.routes if method == "GET"]
    assert len(gets) >= 40 and len(handlers.routes) - len(gets) >= 8, f"few routes are found: {sorted(handlers.routes)}"
    assert not handlers.unlisted(), "read by Ray, and called ignored"


def test_every_key_of_the_table_is_read_by_some_ray():
    read = {}
    for handlers in map(Handlers, map(package, [INSTALLED, *VERSIONS])):
        for (method, route), node in handlers.routes.items():
            if method == "GET":
                read.setdefault(route, set()).update(handlers.reads(node))
    read["/api/v0/logs/stream"] = read["/api/v0/logs/{media_type}"]  # one handler for any kind of log
    known = TABLE if NIGHTLY else {route: TABLE[route] for route in read}  # some are of the oldest versions alone
    assert read == known


# -- on a real head

JUNK = ["r=1", "r=2&r=3", "%72=x", "LIMIT=1", "limit[]=1", "limit%00=1", "=1", "&&", "%zz=1", "%FF=2", "x=%00", "a;b=c", "+=1", "_=1764446400"]
# Of each route a query that takes it beyond its checks, where it has any.
ASKED = {
    "/api/v0/logs": "node_id={node}&glob=gcs*",
    "/api/v0/logs/{media_type}": "node_id={node}&filename=dashboard.err&lines=3",
    "/api/v0/tasks": "limit=5&detail=1&filter_keys=state&filter_predicates=%3D&filter_values=FINISHED",
    "/api/v0/actors": "limit=5&filter_keys=state&filter_predicates=%21%3D&filter_values=DEAD",
    "/nodes": "view=summary",
    "/logical/actors": "ids=abc",
    "/api/cluster_status": "format=1",
}


def other_keys(route):
    """What other routes read, and this one does not."""
    every = {key.rstrip("*") for keys in TABLE.values() for key in keys}
    return [f"{key}=1" for key in sorted(every - {key.rstrip("*") for key in TABLE[route]})]


# What a node has in use is another number each time, and Ray keeps each query's answer for two seconds.
MEASURED = ("/nodes", "/api/v0/nodes")


SOFTWARE = (b"User-Agent", b" test")  # versions before 2.53 answer no client that names none


def measured(answer):
    """An answer about nodes without its numbers, its keys in order: a node's resources come in another each time."""
    status, kind, body = answer
    body = json.dumps(json.loads(body), sort_keys=True).encode()
    return comparable((status, kind, re.sub(rb"[\d.]+(e[+-]?\d+)?", b"0", body)))


def same(line, one, other):
    """Whether two targets are answered alike; what is of the moment may lie between the two."""
    view = measured if one.startswith(MEASURED) else comparable
    for _ in range(6):
        answers = [view(line.ask(Request("GET", target.encode(), [SOFTWARE]))) for target in (one, other)]
        if answers[0] == answers[1]:
            return True
        time.sleep(0.2)
    return False


def targets(route, node):
    """What is asked of a route: `(plain, the same with what is ignored)`."""
    path = route.replace("{media_type}", "file").replace("{node_id}", node)
    path = path.replace("{actor_id}", "absent").replace("{job_or_submission_id}", "raysubmit_finished")
    plain = ASKED.get(route, "").replace("{node}", node)
    dice = random.Random(route)
    for added in JUNK + other_keys(route):
        pairs = [each for each in plain.split("&") if each]
        # A list keeps its order; what is added stands anywhere.
        pairs.insert(dice.randint(0, len(pairs)), added)
        yield f"{path}?{plain}", f"{path}?" + "&".join(pairs)
    if not TABLE[route]:
        # More pairs than newer heads parse: this route parses none.
        yield f"{path}?{plain}", f"{path}?" + "&" * 1001 + "r=1"
    for form in forms(plain):
        yield f"{path}?{plain}", f"{path}?{form}"


def forms(plain):
    """Other forms of one query: keys in another order, escapes, and a value that no handler comes to."""
    pairs = [each for each in plain.split("&") if each]
    if pairs:
        yield "&".join(reversed(pairs))
        yield "&".join("%{:02X}{}".format(ord(pair[0]), pair[1:]) for pair in pairs)
        yield plain + "&" + "&".join(f"{pair.split('=')[0]}=other" for pair in pairs if not pair.startswith("filter_"))


# Streams for ever, is no plain answer, changes something, or is for tests alone.
NOT_ASKED = (
    "/api/v0/logs/stream",
    "/api/jobs/{job_or_submission_id}/logs/tail",
    "/api/job_agent/jobs/{job_or_submission_id}/logs/tail",
    "/api/actors/kill",
    "/api/v0/delay/{delay_s}",
    "/test/dump",
    "/internal/node_module",
)


@pytest.fixture(scope="module", params=[INSTALLED, *VERSIONS])
def some_head(request):
    """A head of each version, with a few tasks and a finished job."""
    if request.param == INSTALLED:
        for each in ("work", "finished_job"):
            request.getfixturevalue(each)
        yield request.getfixturevalue("head")
        return
    with Head(bin=versions.install(request.param)) as head:
        work_a_little(head)
        finish_a_job(head)
        yield head


def test_a_head_answers_the_same_whatever_is_added_that_is_called_ignored(some_head):
    head = some_head
    line = Line(head.ports["dashboard"])
    node = ask(head.url, path="/api/v0/nodes", headers={"User-Agent": "test"}).json()["data"]["result"]["result"][0]["node_id"]
    questions = [pair for route in TABLE if route not in NOT_ASKED for pair in targets(route, node)]
    assert len(questions) > 500
    differ = [pair for pair in questions if not same(line, *pair)]
    # Of two answers about nodes that are kept for two seconds one may know another process: what differs is asked again
    # when all else has been.
    differ = [pair for pair in differ if not any(same(line, *pair) for _ in range(5))]
    assert not differ, f"{len(differ)} of {len(questions)}: {differ[:10]}"


def test_a_hundred_questions_that_differ_in_ignored_keys_cost_ray_one_answer(head, work):
    with Proxy(head) as proxy:
        def upstream():
            rows = proxy.admin("/api/v1/clients")["clients"]
            return sum(row["admitted"] for row in rows), sum(row["shared"] for row in rows)

        def flood(path):
            before = upstream()
            with ThreadPoolExecutor(25) as pool:
                answers = list(pool.map(lambda at: ask(proxy.url, path=path.format(at)).status, range(100)))
            assert set(answers) == {200}
            return [now - then for now, then in zip(upstream(), before)]

        for path in ("/api/jobs/?r={}", "/api/v0/tasks?detail=1&r={}&limit=7"):
            admitted, shared = flood(path)
            assert admitted + shared == 100 and admitted <= 10, (path, admitted, shared)
        assert flood("/api/v0/nodes?limit={}")[0] > 50, "what Ray reads is another question"
