"""Other versions of Ray: their routes, read from their sources, and their signals, read off a head of theirs.

One old version in every run, all of them in a nightly one (RAYGUARD_NIGHTLY=1). And the newest that there is, to hear
of routes and signals that no profile knows: RAYGUARD_NEWEST=pypi installs it, or names the directory of its commands.
"""

import ast
import json
import os
import re
import subprocess
import urllib.request
from pathlib import Path

import pytest
import versions
from head import Head
from proxy import RAYGUARD, ROOT

NIGHTLY = bool(os.environ.get("RAYGUARD_NIGHTLY"))
VERSIONS = list(versions.WANTED) if NIGHTLY else ["2.44.1"]
NEWEST = os.environ.get("RAYGUARD_NEWEST", "")


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


def doctor(head):
    """What `rayguard doctor` finds, by subject; nothing is configured but the upstream."""
    config = head.directory / "rayguard.toml"
    config.write_text(f'upstream = "{head.url}"\nstate_dir = "{head.directory}/state"\nlisten = "127.0.0.1:0"\n[admin]\nlisten = "off"\n')
    command = [RAYGUARD, "doctor", "--config", str(config), "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    return {each["subject"]: each for each in json.loads(done.stdout)["findings"]}


def missing(findings):
    """Signals that move a limit and have no reading."""
    mute = {name for name, each in findings.items() if each["remedy"].startswith("limits that follow it hold")}
    return {name.removeprefix("signal ") for name in mute}


def settled(head):
    """The findings once a head has told of all that it tells: the GCS reports each 10 s."""
    for _ in range(6):
        findings = doctor(head)
        if not missing(findings):
            break
    return findings


@pytest.mark.parametrize("version", VERSIONS)
def test_every_signal_that_moves_a_limit_is_found_on_a_head_in_a_directory_of_its_own(version):
    with Head(bin=versions.install(version), quick_metrics=False) as head:
        findings = settled(head)
    assert findings["ray"]["found"].startswith(version)
    assert f"profile {version.rsplit('.', 1)[0]} (made for it)" in findings["ray profile"]["found"]
    assert not missing(findings), findings
    moving = {"gcs_latency", "head_cpu", "head_memory", "pending_tasks", "submission_backlog"}
    assert moving <= {name.removeprefix("signal ") for name in findings}, findings


@pytest.fixture(scope="module")
def newest():
    return versions.newest() if NEWEST == "pypi" else Path(NEWEST)


@pytest.mark.skipif(not NEWEST, reason="RAYGUARD_NEWEST is not set")
def test_every_route_of_the_newest_is_classified(newest):
    unknown = Dashboard(versions.package(newest)).routes - catalogue()
    assert not unknown, f"routes that no profile knows: {sorted(unknown)}"


@pytest.mark.skipif(not NEWEST, reason="RAYGUARD_NEWEST is not set")
def test_every_signal_of_the_newest_is_known_and_found(newest):
    known = set(re.findall(r'"((?:dashboard|gcs)\w*)"', (ROOT / "src/core/signal/catalogue.rs").read_text()))
    with Head(bin=newest) as head:
        findings = settled(head)
        pages = [urllib.request.urlopen(f"http://{target}/metrics", timeout=10).read().decode() for target in head.metrics_targets]
    components = set(re.findall(r'Component="((?:dashboard|gcs)\w*)"', "".join(pages)))
    assert components >= {"dashboard"}
    assert not components - known, f"processes that no signal knows: {sorted(components - known)}"
    lost = missing(findings) | set(findings.get("other signals", {"found": ": "})["found"].rpartition(": ")[2].split(", ")) - {""}
    # Those wait for something that an idle head has not done yet.
    assert not lost - {"dashboard_slow_share", "gcs_slow_share", "gcs_very_slow_share"}, f"signals that are not found: {sorted(lost)}"
