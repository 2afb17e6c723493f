"""What Ray reads of a query, and what it ignores.

`tests/fixtures/ray/query.txt` says which keys each route's handler reads (`*`: all of its values, else the first). It
is compared with the handlers of the installed Ray, found in its sources, and with those of other versions in
the directories that `RAYGUARD_MORE_RAYS` names; and a real head must answer the same whatever is added that the table
calls ignored.
"""

import ast
import importlib.util
import os
import random
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from proxy import Proxy, ask
from test_differential import Line, Request, comparable

FIXTURE = Path(__file__).parent.parent / "fixtures" / "ray" / "query.txt"
TABLE = {path: set(keys) for path, *keys in map(str.split, FIXTURE.read_text().splitlines())}

# Read by versions before 2.60 alone.
OLDER = {"format": ("/api/v0/logs/{media_type}",)}


def rays():
    """The `ray` packages whose sources are read."""
    installed = Path(importlib.util.find_spec("ray").origin).parent
    return [installed, *(Path(each) for each in os.environ.get("RAYGUARD_MORE_RAYS", "").split(":") if each)]


class Handlers:
    """The handlers of a Ray's dashboard, and the keys that each of them reads."""

    def __init__(self, ray):
        self.functions, self.routes = {}, {}
        for path in (ray / "dashboard").rglob("*.py"):
            if "tests" not in path.parts:
                for node in ast.walk(ast.parse(path.read_text())):
                    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                        self.functions.setdefault(node.name, []).append(node)
                        for route in filter(None, map(route_of, node.decorator_list)):
                            self.routes[route] = node

    def reads(self, route):
        handler = self.routes[route]
        keys = self.read_by(handler, {argument.arg for argument in handler.args.args} - {"self"}, set())
        # Ray's own cache of two seconds goes by the whole query, and is passed by with `nocache=1`.
        cached = any("aiohttp_cache" in ast.unparse(each) for each in handler.decorator_list)
        return keys | ({"nocache"} if cached else set())

    def read_by(self, function, names, seen):
        """The keys read by a function of requests that it knows by these names, and by those it hands them to."""
        if function in seen:
            return set()
        seen.add(function)
        keys, looked_at = set(), set()
        for node in ast.walk(function):
            if isinstance(node, ast.Call):
                if isinstance(node.func, ast.Attribute) and is_query(node.func.value, names):
                    looked_at.add(node.func.value)
                    assert node.func.attr in ("get", "getall"), ast.unparse(node)
                    keys.add(constant(node.args[0]) + ("*" if node.func.attr == "getall" else ""))
                name = getattr(node.func, "attr", getattr(node.func, "id", None))
                for at, argument in enumerate(node.args):
                    if isinstance(argument, ast.Name) and argument.id in names:
                        for called in self.functions.get(name, []):
                            taken = [each.arg for each in called.args.args if each.arg != "self"]
                            keys |= self.read_by(called, {taken[at]} if at < len(taken) else set(), seen)
            elif isinstance(node, ast.Subscript) and is_query(node.value, names):
                looked_at.add(node.value)
                keys.add(constant(node.slice))
            elif isinstance(node, ast.Compare) and is_query(node.comparators[-1], names):
                looked_at.add(node.comparators[-1])
                keys.add(constant(node.left))
        for node in ast.walk(function):
            if is_query(node, names):
                assert node in looked_at, f"{function.name} reads its query in a way of its own: {ast.unparse(function)}"
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in names:
                assert node.attr not in ("query_string", "rel_url", "path_qs", "raw_path", "url"), ast.unparse(function)
        return keys


def route_of(decorator):
    """The path of `@routes.get("/path")`, for any name of the table."""
    if isinstance(decorator, ast.Call) and isinstance(decorator.func, ast.Attribute) and decorator.func.attr == "get":
        first = decorator.args[0] if decorator.args else None
        return first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) else None
    return None


def is_query(node, names):
    of_name = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in names
    return of_name and node.attr == "query"


def constant(node):
    assert isinstance(node, ast.Constant), f"a key that is no constant: {ast.unparse(node)}"
    return node.value


@pytest.mark.parametrize("ray", rays(), ids=lambda ray: ray.parent.parent.parent.parent.name)
def test_the_table_names_every_key_that_a_handler_reads(ray):
    handlers = Handlers(ray)
    found = {route for route in TABLE if route in handlers.routes}
    assert len(found) >= 25, f"few routes are found in {ray}: {sorted(found)}"
    missing = {route: left for route in found if (left := handlers.reads(route) - TABLE[route])}
    assert not missing, "read by Ray, and called ignored"


def test_the_installed_ray_reads_every_key_of_the_table():
    handlers = Handlers(rays()[0])
    for route, keys in TABLE.items():
        if route == "/api/v0/logs/stream":  # the same handler as any other kind of log
            assert keys == TABLE["/api/v0/logs/{media_type}"]
            continue
        older = {key for key, routes in OLDER.items() if route in routes}
        assert handlers.reads(route) == keys - older, route


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


def same(line, one, other):
    """Whether two targets are answered alike; what is of the moment may lie between the two."""
    for _ in range(6):
        answers = [comparable(line.ask(Request("GET", target.encode()))) for target in (one, other)]
        if one.startswith(MEASURED):
            answers = [(status, kind, re.sub(rb"[\d.]+(e[+-]?\d+)?", b"0", body)) for status, kind, body in answers]
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
    for form in forms(plain):
        yield f"{path}?{plain}", f"{path}?{form}"


def forms(plain):
    """Other forms of one query: keys in another order, escapes, and a value that no handler comes to."""
    pairs = [each for each in plain.split("&") if each]
    if pairs:
        yield "&".join(reversed(pairs))
        yield "&".join("%{:02X}{}".format(ord(pair[0]), pair[1:]) for pair in pairs)
        yield plain + "&" + "&".join(f"{pair.split('=')[0]}=other" for pair in pairs if not pair.startswith("filter_"))


# Streams for ever, or is no plain answer.
NOT_ASKED = ("/api/v0/logs/stream", "/api/jobs/{job_or_submission_id}/logs/tail")


def test_a_head_answers_the_same_whatever_is_added_that_is_called_ignored(head, work, finished_job):
    line = Line(head.ports["dashboard"])
    node = ask(head.url, path="/api/v0/nodes").json()["data"]["result"]["result"][0]["node_id"]
    questions = [pair for route in TABLE if route not in NOT_ASKED for pair in targets(route, node)]
    assert len(questions) > 500
    differ = [pair for pair in questions if not same(line, *pair)]
    # A list of nodes may be another for a while: what differs is asked again when all else has been.
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
