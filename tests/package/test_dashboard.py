"""Grafana's dashboard, by Grafana's own schema and Prometheus' own parser; no Grafana runs here."""

import json
import re
import shutil
import subprocess

import pytest
from conftest import ROOT
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

DASHBOARD = json.loads((ROOT / "config/deploy/grafana/rayguard.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
# Grafana reads these, and its types leave them out.
UNTYPED = {"definition", "titleFormat", "step"}


def lost(given, kept, place="dashboard"):
    """What Grafana's types do not know."""
    if isinstance(given, dict):
        for key, value in given.items():
            if key not in kept:
                yield f"{place}.{key}"
            else:
                yield from lost(value, kept[key], f"{place}.{key}")
    elif isinstance(given, list):
        for at, value in enumerate(given):
            yield from lost(value, kept[at], f"{place}[{at}]")
    elif given != kept:
        yield f"{place}: {given} became {kept}"


def test_grafanas_schema_knows_every_field():
    register_default_plugins()
    kept = json.loads(JSONEncoder().encode(Dashboard.from_json(DASHBOARD)))
    assert [place for place in lost(DASHBOARD, kept) if place.rsplit(".", 1)[-1] not in UNTYPED] == []


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_says_what_it_shows_in_one_unit_and_for_the_chosen_clusters(panel):
    assert len(panel["description"]) > 20
    assert panel["fieldConfig"]["defaults"]["unit"]
    properties = [each["id"] for override in panel["fieldConfig"]["overrides"] for each in override["properties"]]
    assert "unit" not in properties and "custom.axisPlacement" not in properties, "one unit, one axis"
    for target in panel["targets"]:
        selectors = re.findall(r"\b(?:rayguard|ray)_\w+(\{[^}]*\})?", re.sub(r"ray_io_cluster", "cluster", target["expr"]))
        assert selectors and all('cluster=~"$cluster"' in selector for selector in selectors), target["expr"]


def test_the_variables_follow_the_cluster():
    for variable in DASHBOARD["templating"]["list"]:
        if variable["name"] in ("instance", "class"):
            assert 'ray_io_cluster=~"$cluster"' in variable["query"]["query"]


def test_prometheus_parses_every_expression(tmp_path):
    assert shutil.which("promtool"), "install Debian's prometheus"
    values = {"$cluster": ".*", "$instance": ".*", "$class": ".*", "$__rate_interval": "5m"}
    rules = []
    for panel in PANELS:
        for target in panel["targets"]:
            expression = target["expr"]
            for name, value in values.items():
                expression = expression.replace(name, value)
            assert "$" not in expression, expression
            rules.append({"record": f"panel:{panel['id']}:{target['refId']}", "expr": expression})
    path = tmp_path / "rules.yml"
    path.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    checked = subprocess.run(["promtool", "check", "rules", path], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
