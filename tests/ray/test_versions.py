"""The routes of other versions of Ray, read from their sources.

One old version in every run, all of them in a nightly one (RAYGUARD_NIGHTLY=1).
"""

import ast
import os
import re

import pytest
import versions
from proxy import ROOT

NIGHTLY = bool(os.environ.get("RAYGUARD_NIGHTLY"))
VERSIONS = list(versions.WANTED) if NIGHTLY else ["2.44.1"]


class Dashboard:
    """The dashboard of an installed Ray, by its sources."""

    def __init__(self, ray):
        self.routes = set()
        for path in (ray / "dashboard").rglob("*.py"):
            if "tests" in path.parts:
                continue
            for node in ast.walk(ast.parse(path.read_text())):
                for each in getattr(node, "decorator_list", []):
                    self.routes |= route_of(each)


def route_of(decorator):
    call = decorator.func if isinstance(decorator, ast.Call) else None
    first = decorator.args[0] if call and decorator.args else None
    methods = ("get", "post", "put", "delete", "patch")
    if not (isinstance(call, ast.Attribute) and call.attr in methods and isinstance(first, ast.Constant)):
        return set()
    if not (isinstance(first.value, str) and first.value.startswith("/")):
        return set()
    return {(call.attr.upper(), nameless(first.value))}


def nameless(pattern):
    return re.sub(r"\{[^}]*\}", "{}", pattern)


def catalogue():
    """The routes of rayguard's catalogue."""
    source = (ROOT / "src/core/request/catalogue.rs").read_text()
    found = re.findall(r'\broute\(\s*"(\w+)",\s*"([^"]+)"', source)
    return {(method, nameless(path)) for method, path in found}


@pytest.mark.parametrize("version", VERSIONS)
def test_every_route_of_its_own_is_classified(version):
    routes = Dashboard(versions.package(versions.install(version))).routes
    assert len(routes) >= 40, f"few routes are found: {sorted(routes)}"
    assert not routes - catalogue()
