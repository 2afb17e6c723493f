"""The chart, the kustomize component and the manifests are rendered and held to Kubernetes' and KubeRay's own schemas, and
every configuration in them to `rayguard check`."""

import json
import re
import shutil

import jsonschema
import pytest
import yaml
from conftest import ROOT, SCHEMAS, check_configuration, documents, one, run, tool

CHART = ROOT / "config/deploy/helm/rayguard"
KUSTOMIZE = ROOT / "config/deploy/kustomize"
KUBERNETES = ROOT / "config/deploy/kubernetes"

POD = {"resources": {"requests": {"cpu": "200m"}}, "nodeSelector": {"disk": "ssd"}, "priorityClassName": "high"}
# Name, values, the kinds that come out, in order of their names.
VALUES = [
    ("the defaults", {}, "ConfigMap Deployment Service"),
    ("shadow", {"mode": "shadow"}, "ConfigMap Deployment Service"),
    ("a cluster in another namespace", {"cluster": {"namespace": "ray"}}, "ConfigMap Deployment Service"),
    ("no Ray Client", {"rayClient": {"enabled": False}}, "ConfigMap Deployment Service"),
    ("Serve too", {"serve": {"enabled": True}, "settings": '[slo]\nserve = "p95 800ms"\n'}, "ConfigMap Deployment Service"),
    (
        "everything for Prometheus and the network",
        {
            "podMonitor": {"enabled": True}, "prometheusRule": {"enabled": True},
            "networkPolicy": {"enabled": True, "operatorNamespace": "kuberay-system", "prometheusNamespace": "monitoring"},
        },
        "ConfigMap Deployment NetworkPolicy NetworkPolicy PodMonitor PrometheusRule Service",
    ),
    (
        "three replicas that share their limits",
        {"replicas": 3, "sharedStore": {"url": "redis://valkey:6379/0", "passwordSecret": "valkey"}},
        "ConfigMap Deployment Service",
    ),
    (
        "an admin token, a digest, and a pod of one's own",
        {
            "admin": {"tokenSecret": "rayguard-admin"}, "image": {"digest": "sha256:" + "0" * 64},
            "imagePullSecrets": [{"name": "registry"}], "podLabels": {"team": "ml"}, "podAnnotations": {"note": "x"},
            "tolerations": [{"key": "ray", "operator": "Exists"}],
            "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": "pool", "operator": "In", "values": ["head"]}]}]}}},
            "service": {"type": "LoadBalancer", "annotations": {"cloud": "internal"}}, **POD,
        },
        "ConfigMap Deployment Service",
    ),
    ("a configuration of one's own", {"config": 'upstream = "http://head:8265"\nlisten = "0.0.0.0:8265"\n'}, "ConfigMap Deployment Service"),
    ("a ConfigMap of one's own", {"existingConfigMap": "mine"}, "Deployment Service"),
    ("a sidecar's surroundings", {"placement": "sidecar", "networkPolicy": {"enabled": True}, "podMonitor": {"enabled": True}}, "ConfigMap NetworkPolicy PodMonitor"),
    (
        "a new cluster with the sidecar",
        {
            "placement": "sidecar", "rayCluster": {"create": True}, "admin": {"tokenSecret": "rayguard-admin"},
            "networkPolicy": {"enabled": True, "clients": [{"namespaceSelector": {"matchLabels": {"team": "ml"}}}]}, **POD,
        },
        "ConfigMap NetworkPolicy RayCluster",
    ),
]  # fmt: skip


def render(helm, tmp_path, values, **how):
    path = tmp_path / "values.yaml"
    values = {**values, "cluster": {"name": "my-cluster", **values.get("cluster", {})}}
    path.write_text(yaml.safe_dump(values))
    return helm("template", "guard", CHART, "--namespace", "team", "--values", path, **how)


@pytest.mark.parametrize(("values", "kinds"), [pytest.param(*each[1:], id=each[0]) for each in VALUES])
def test_the_chart_renders_what_the_schemas_allow(helm, tmp_path, values, kinds):
    found = documents(render(helm, tmp_path, values).stdout)
    assert " ".join(sorted(each["kind"] for each in found)) == kinds
    for each in found:
        if each["kind"] == "ConfigMap":
            check_configuration(each["data"]["rayguard.toml"], tmp_path)


def test_twelve_sets_of_values_are_rendered():
    assert len(VALUES) == 12


def test_what_cannot_be_together_is_refused_by_the_name_of_the_value(helm, tmp_path):
    for values, named in [
        ({"cluster": {"name": ""}}, "cluster.name"),
        ({"replicas": 2}, "sharedStore.url"),
        ({"placement": "sidecar", "replicas": 2, "sharedStore": {"url": "redis://r:6379/0"}}, "replicas"),
        ({"placement": "sidecar", "cluster": {"namespace": "ray"}}, "cluster.namespace"),
        ({"placement": "sidecar", "serve": {"enabled": True}}, "serve.enabled"),
        ({"rayCluster": {"create": True}}, "rayCluster.create"),
        ({"mode": "ask"}, "mode"),
        ({"replica": 1}, "replica"),
        ({"image": {"digest": "sha256:1"}}, "digest"),
    ]:
        done = render(helm, tmp_path, values, check=False)
        assert done.returncode != 0 and named in done.stderr, (values, done.stderr)


def test_a_sidecar_and_its_network_policy_fit_together(helm, tmp_path):
    found = documents(render(helm, tmp_path, VALUES[-1][1]).stdout)
    spec = one(found, "RayCluster")["spec"]["headGroupSpec"]
    containers = spec["template"]["spec"]["containers"]
    assert [each["name"] for each in containers] == ["ray-head", "rayguard"], "KubeRay reads the first one's ports"
    assert spec["rayStartParams"]["dashboard-port"] == "18265"
    configuration = one(found, "ConfigMap")["data"]["rayguard.toml"]
    assert 'upstream = "http://127.0.0.1:18265"' in configuration and 'token = { file = "/etc/rayguard-admin/token" }' in configuration
    opened = [port["port"] for rule in one(found, "NetworkPolicy")["spec"]["ingress"] for port in rule.get("ports", [])]
    assert 8265 in opened and 18265 not in opened
    mounts = {mount["name"] for mount in containers[1]["volumeMounts"]}
    assert mounts == {volume["name"] for volume in spec["template"]["spec"]["volumes"]}


def test_the_charts_rules_are_the_rules(helm, tmp_path):
    found = documents(render(helm, tmp_path, {"prometheusRule": {"enabled": True}}).stdout)
    rules = yaml.safe_load((ROOT / "config/deploy/prometheus/rayguard.rules.yml").read_text())
    assert one(found, "PrometheusRule")["spec"] == rules


def test_a_packed_chart_is_whole(helm, tmp_path):
    helm("package", CHART, "--destination", tmp_path)
    packed = next(tmp_path.glob("rayguard-*.tgz"))
    found = documents(helm("template", "guard", packed, "--set", "cluster.name=c,prometheusRule.enabled=true").stdout)
    assert one(found, "PrometheusRule")["spec"]["groups"]
    helm("lint", "--strict", packed, "--set", "cluster.name=c")


def test_chart_and_program_have_one_version():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    version = re.search(r'^version = "(.+)"$', (ROOT / "Cargo.toml").read_text(), re.M)[1]
    assert chart["version"] == chart["appVersion"] == version
    container = (KUSTOMIZE / "sidecar/container.yaml").read_text()
    assert f"ghcr.io/rayguard/rayguard:{version}\n" in container


def rows(schema, values, prefix=""):
    """The table of values, as the schema and values.yaml have them."""
    for name, field in schema["properties"].items():
        if prefix + name == "global":
            continue
        default = values.get(name)
        if field["type"] == "object" and "properties" in field:
            yield from rows(field, default, f"{prefix}{name}.")
            continue
        kind = " or ".join(f"`{each}`" for each in field["enum"]) if "enum" in field else field["type"]
        shown = json.dumps(default) if not isinstance(default, (dict, list)) or len(json.dumps(default)) < 60 else "see values.yaml"
        yield f"| `{prefix}{name}` | {field['description']} | {kind} | `{shown}` |".replace("`see values.yaml`", "see values.yaml")


def test_the_readmes_table_of_values_is_the_schemas():
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    jsonschema.Draft7Validator(schema).validate(values)
    table = "\n".join(["| value | meaning | kind | default |", "|---|---|---|---|", *rows(schema, values)])
    readme = (CHART / "README.md").read_text()
    assert table in readme, f"the table should be:\n{table}"


def test_the_component_puts_the_sidecar_into_a_cluster_and_leaves_the_rest(kustomize, tmp_path):
    found = documents(kustomize(KUSTOMIZE / "example").stdout)
    assert all(each["metadata"]["namespace"] == "ray" for each in found)
    assert sorted(each["kind"] for each in found) == ["ConfigMap", "NetworkPolicy", "PodMonitor", "RayCluster"]
    check_configuration(one(found, "ConfigMap")["data"]["rayguard.toml"], tmp_path)
    given = yaml.safe_load((KUSTOMIZE / "example/raycluster.yaml").read_text())["spec"]
    spec = one(found, "RayCluster")["spec"]
    assert spec["workerGroupSpecs"] == given["workerGroupSpecs"]
    before, after = (each["headGroupSpec"]["template"]["spec"] for each in (given, spec))
    assert after["containers"][0] == before["containers"][0], "ray-head stays first and as it was"
    assert after["containers"][1]["name"] == "rayguard" and len(after["containers"]) == 2
    assert after["volumes"][: len(before["volumes"])] == before["volumes"]
    assert {mount["name"] for mount in after["containers"][1]["volumeMounts"]} <= {each["name"] for each in after["volumes"]}
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0", "parameters that were there stay"


def test_the_components_parameters_reach_every_place(kustomize, tmp_path):
    """Into a cluster that has no volumes and no parameters of its own, with another image."""
    shutil.copytree(KUSTOMIZE, tmp_path / "kustomize")
    example = tmp_path / "kustomize/example"
    cluster = yaml.safe_load((example / "raycluster.yaml").read_text())
    cluster["metadata"]["name"] = "other"
    head = cluster["spec"]["headGroupSpec"]
    del head["template"]["spec"]["volumes"], head["template"]["spec"]["containers"][0]["volumeMounts"], head["rayStartParams"]
    (example / "raycluster.yaml").write_text(yaml.safe_dump(cluster))
    kustomization = yaml.safe_load((example / "kustomization.yaml").read_text())
    kustomization["namespace"] = "elsewhere"
    kustomization["images"] = [{"name": "ghcr.io/rayguard/rayguard", "newName": "mirror/rayguard", "newTag": "9"}]
    kustomization["configMapGenerator"][1]["literals"] = [
        "cluster=other", "operatorNamespace=ops", "prometheusNamespace=mon", "adminSecret=key", "stateSize=1Gi"
    ]  # fmt: skip
    (example / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    text = kustomize(example).stdout
    found = documents(text)
    assert {each["metadata"]["namespace"] for each in found} == {"elsewhere"}
    policy = one(found, "NetworkPolicy")["spec"]
    assert policy["podSelector"]["matchLabels"]["ray.io/cluster"] == "other"
    assert policy["ingress"][1]["from"][1]["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "ops"}
    assert policy["ingress"][2]["from"][0]["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "mon"}
    pod = one(found, "RayCluster")["spec"]["headGroupSpec"]["template"]["spec"]
    assert pod["containers"][1]["image"] == "mirror/rayguard:9"
    assert pod["volumes"] == [
        {"name": "rayguard", "configMap": {"name": "rayguard"}},
        {"name": "rayguard-admin", "secret": {"secretName": "key"}},
        {"name": "rayguard-state", "emptyDir": {"sizeLimit": "1Gi"}},
    ]
    for placeholder in ("CLUSTER", "OPERATOR_NAMESPACE", "PROMETHEUS_NAMESPACE"):
        assert placeholder not in text


def test_without_the_component_the_cluster_is_as_it_was(kustomize, tmp_path):
    shutil.copytree(KUSTOMIZE, tmp_path / "kustomize")
    path = tmp_path / "kustomize/example/kustomization.yaml"
    path.write_text(path.read_text().replace("components: [../sidecar]\n", ""))
    found = documents(kustomize(path.parent).stdout)
    given = yaml.safe_load((KUSTOMIZE / "example/raycluster.yaml").read_text())
    given["metadata"]["namespace"] = "ray"
    assert one(found, "RayCluster") == given and sorted(each["kind"] for each in found) == ["ConfigMap", "RayCluster"]


@pytest.mark.parametrize("path", sorted(KUBERNETES.glob("*.yaml")), ids=lambda path: path.name)
def test_the_plain_manifests_are_what_the_schemas_allow(path):
    assert documents(path.read_text())


def test_the_schemas_refuse_what_is_wrong():
    cluster = (KUSTOMIZE / "example/raycluster.yaml").read_text()
    for right, wrong in [("rayStartParams:", "rayStartParam:"), ("image: rayproject", "imago: rayproject"), ("replicas: 2", "replicas: two")]:
        with pytest.raises(AssertionError):
            documents(cluster.replace(right, wrong))
    with pytest.raises(AssertionError):
        documents("apiVersion: monitoring.coreos.com/v1\nkind: PodMonitor\nmetadata: {name: x}\nspec: {selectors: {}}\n")


def test_the_compose_file_is_what_its_schema_allows(tmp_path):
    schema = jsonschema.Draft7Validator(json.loads((SCHEMAS / "compose.json").read_text()))
    folder = ROOT / "config/deploy/compose"
    text = (folder / "compose.yaml").read_text()
    compose = yaml.safe_load(text)
    schema.validate(compose)
    assert list(schema.iter_errors(yaml.safe_load(text.replace("cap_drop:", "cap_drops:")))), "it refuses what is wrong"
    services = compose["services"]
    for name, service in services.items():
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            assert source in compose["volumes"] if not source.startswith(".") else (folder / source).exists(), (name, mount)
        assert set(service.get("depends_on", [])) <= set(services)
    context = (folder / services["rayguard"]["build"]["context"]).resolve()
    assert context == ROOT and (context / services["rayguard"]["build"]["dockerfile"]).exists()
    configuration = (folder / "rayguard.toml").read_text()
    check_configuration(configuration, tmp_path)
    hosts = set(re.findall(r"(?:http://|\")([a-z-]+):\d+", configuration + (folder / "prometheus.yml").read_text()))
    assert hosts <= set(services), "every host is a service of this file"
    published = {int(port.split(":")[1]) for port in services["rayguard"]["ports"]}
    listened = {int(port) for port in re.findall(r'(?:address|listen) = "0\.0\.0\.0:(\d+)"', configuration)}
    assert published == listened
    assert "ports" not in services["ray-head"], "the head is reached through rayguard alone"


def test_the_tools_are_the_ones_that_are_named():
    assert run(tool("helm"), "version", "--short").stdout.startswith("v4.")
    assert "Kustomize Version: v5." in run(tool("kubectl"), "version", "--client").stdout
