"""The handlers of a Ray's dashboard and agents, read from the sources of its package: their routes, and the keys of a
query that each of them reads.
"""

import ast
from pathlib import Path

FIXTURE = Path(__file__).parent.parent / "fixtures" / "ray" / "query.txt"
TABLE = {path: set(keys) for path, *keys in map(str.split, FIXTURE.read_text().splitlines())}


class Handlers:
    """The handlers of a Ray's dashboard and agents, and the keys that each of them reads."""

    def __init__(self, package):
        self.functions, self.routes = {}, {}
        for path in (package / "dashboard").rglob("*.py"):
            if "tests" not in path.parts:
                for node in ast.walk(ast.parse(path.read_text())):
                    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                        self.functions.setdefault(node.name, []).append(node)
                        self.routes |= dict.fromkeys(filter(None, map(route_of, node.decorator_list)), node)

    def unlisted(self):
        """What they read and the table does not name, by method and path; of a route without an entry that it has none."""
        found = {}
        for (method, path), handler in self.routes.items():
            # Those that are asked in another way read no query at all.
            known = TABLE.get(path) if method == "GET" else set()
            if known is None:
                found[method, path] = "no entry"
            elif keys := self.reads(handler) - known:
                found[method, path] = keys
        return found

    def reads(self, handler):
        keys = self.read_by(handler, frozenset(each.arg for each in handler.args.args if each.arg != "self"), {}, set())
        # Ray's own cache of two seconds goes by the whole query, and is passed by with `nocache=1`.
        cached = any("aiohttp_cache" in ast.unparse(each) for each in handler.decorator_list)
        return keys | ({"nocache"} if cached else set())

    def read_by(self, function, names, words, seen):
        """The keys read by a function of requests that it knows by these names, and by those it hands them to.

        `words` are its parameters that are given as constants."""
        if (function, names, str(words)) in seen:
            return set()
        seen.add((function, names, str(words)))
        keys, looked_at = set(), set()
        for node in ast.walk(function):
            if isinstance(node, ast.Call):
                if isinstance(node.func, ast.Attribute) and is_query(node.func.value, names):
                    looked_at.add(node.func.value)
                    assert node.func.attr in ("get", "getall"), ast.unparse(node)
                    keys.add(constant(node.args[0], words) + ("*" if node.func.attr == "getall" else ""))
                name = getattr(node.func, "attr", getattr(node.func, "id", None))
                handed = {at for at, each in enumerate(node.args) if isinstance(each, ast.Name) and each.id in names}
                for called in self.functions.get(name, []) if handed else []:
                    taken = [each.arg for each in called.args.args if each.arg != "self"]
                    requests = frozenset(taken[at] for at in handed if at < len(taken))
                    given = {word: each.value for word, each in zip(taken, node.args) if isinstance(each, ast.Constant)}
                    keys |= self.read_by(called, requests, given, seen)
            elif isinstance(node, ast.Subscript) and is_query(node.value, names):
                looked_at.add(node.value)
                keys.add(constant(node.slice, words))
            elif isinstance(node, ast.Compare) and is_query(node.comparators[-1], names):
                looked_at.add(node.comparators[-1])
                keys.add(constant(node.left, words))
        for node in ast.walk(function):
            if is_query(node, names):
                assert node in looked_at, f"{function.name} reads its query in a way of its own: {ast.unparse(function)}"
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in names:
                assert node.attr not in ("query_string", "rel_url", "path_qs", "raw_path", "url"), ast.unparse(function)
        return keys


def route_of(decorator):
    """The method and path of `@routes.get("/path")`, for any name of the table."""
    if isinstance(decorator, ast.Call) and isinstance(decorator.func, ast.Attribute):
        first = decorator.args[0] if decorator.args else None
        if isinstance(first, ast.Constant) and str(first.value).startswith("/"):
            return decorator.func.attr.upper(), first.value
    return None


def is_query(node, names):
    of_name = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in names
    return of_name and node.attr == "query"


def constant(node, words):
    if isinstance(node, ast.Name) and node.id in words:
        return words[node.id]
    assert isinstance(node, ast.Constant), f"a key that is no constant: {ast.unparse(node)}"
    return node.value
