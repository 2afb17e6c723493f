#!/usr/bin/env python3
"""Makes the schemas beside this file from what their projects publish.

    python3 tests/package/schemas/make.py raycluster.json    ray.io_rayclusters.yaml
    python3 tests/package/schemas/make.py podmonitor.json    monitoring.coreos.com_podmonitors.yaml
    python3 tests/package/schemas/make.py prometheusrule.json monitoring.coreos.com_prometheusrules.yaml

Descriptions are left out; a field that a schema does not name is refused, as the API server's strict validation
does; and a pod template, which KubeRay's definition copies from Kubernetes, is referred to instead: the
tests take Kubernetes' own.
"""

import json
import pathlib
import sys

import yaml

POD_TEMPLATE = "_definitions.json#/$defs/io.k8s.api.core.v1.PodTemplateSpec"
POD_FIELDS = {"containers", "initContainers", "volumes", "nodeSelector"}


def made(node):
    if isinstance(node, list):
        return [made(each) for each in node]
    if not isinstance(node, dict):
        return node
    fields = node.get("properties")
    if isinstance(fields, dict) and POD_FIELDS <= set(fields.get("spec", {}).get("properties", {})):
        return {"$ref": POD_TEMPLATE}
    kept = {
        key: made(value)
        for key, value in node.items()
        if not (key == "description" and isinstance(value, str)) and not key.startswith("x-kubernetes-")
    }
    if node.get("x-kubernetes-int-or-string"):
        kept.pop("anyOf", None)
        kept["type"] = ["integer", "string"]
    elif isinstance(fields, dict) and "additionalProperties" not in node and not node.get("x-kubernetes-preserve-unknown-fields"):
        kept["additionalProperties"] = False
    return kept


def main():
    out, source = sys.argv[1:]
    definition = yaml.safe_load(pathlib.Path(source).read_text())
    version = next(each for each in definition["spec"]["versions"] if each["storage"])
    schema = made(version["schema"]["openAPIV3Schema"])
    schema["properties"] |= {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"}}
    path = pathlib.Path(__file__).with_name(out)
    path.write_text(json.dumps(schema, separators=(",", ":"), sort_keys=True) + "\n")
    print(path.name, path.stat().st_size, "bytes,", version["name"])


if __name__ == "__main__":
    main()
