"""The image's file system, assembled as the Dockerfile does it, and the binary run in it as a controller would run it: its own
root, read-only, its own network, no privileges; then the image itself, by podman, alone and as the compose file has it. And
the tarball of the same binary.

Needs root, a static binary (RAYGUARD_STATIC), and for two tests podman, buildah, runc, netavark, aardvark-dns, iptables and a
static busybox.
"""

import os
import re
import resource
import shutil
import stat
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, run

STATIC = os.environ.get("RAYGUARD_STATIC", str(ROOT / "target/shipped/rayguard"))
DOCKERFILE = (ROOT / "config/deploy/image/Dockerfile").read_text()


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    out = tmp_path_factory.mktemp("shipped")
    run("bash", ROOT / ".ci/release", "binary", "rootfs", "tarball", "sbom", env={**os.environ, "OUT": str(out), "BINARY": STATIC})
    return out


@pytest.fixture
def rootfs(shipped):
    return shipped / "rootfs"


def in_namespaces(script, rootfs, **environment):
    """Runs a script with a network, processes and mounts of its own, and `$ROOT` read-only but for its volume."""
    prelude = """set -eu
        ip link set lo up
        mount --bind "$ROOT" "$ROOT" && mount -o remount,bind,ro "$ROOT"
        mount -t tmpfs -o uid=65532,gid=65532,mode=0750 volume "$ROOT/var/lib/rayguard"
        inside() { chroot --userspec=65532:65532 "$ROOT" /usr/local/bin/rayguard "$@"; }
        healthy() { for _ in $(seq 100); do inside health && return; sleep 0.1; done 2>/dev/null; inside health; }
    """
    command = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", "-c", prelude + script]
    done = subprocess.run(
        command, env={"PATH": os.environ["PATH"], "ROOT": str(rootfs), **environment}, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def test_it_holds_the_binary_and_little_else(rootfs):
    files = sorted(str(each.relative_to(rootfs)) for each in rootfs.rglob("*") if each.is_file())
    assert files == [
        "etc/group", "etc/nsswitch.conf", "etc/passwd", "etc/ssl/certs/ca-certificates.crt", "usr/local/bin/rayguard",
        "usr/share/licenses/rayguard/LICENSE", "usr/share/licenses/rayguard/THIRD-PARTY-LICENSES.txt",
    ]  # fmt: skip
    assert sum(each.lstat().st_size for each in rootfs.rglob("*")) <= 20 << 20
    for each in rootfs.rglob("*"):
        assert not each.stat().st_mode & (stat.S_ISUID | stat.S_ISGID), each


def test_it_runs_without_privileges_on_a_read_only_root_and_is_healthy(rootfs):
    said = in_namespaces(
        """
        if inside health 2>/dev/null; then echo "healthy before it runs"; exit 1; fi
        cd "$ROOT"
        chroot --userspec=65532:65532 "$ROOT" /usr/local/bin/rayguard run --state-dir /var/lib/rayguard & pid=$!
        healthy
        grep ^Uid: /proc/$pid/status; grep ^CapEff: /proc/$pid/status
        if touch "$ROOT/tmp/x" 2>/dev/null; then echo "the root can be written"; exit 1; fi
        kill -TERM $pid; wait $pid; echo "ended: $?"
        find "$ROOT/var/lib/rayguard" -type f -printf '%P\\n' | sort
        """,
        rootfs,
    )
    assert "ready\n" in said and "ended: 0" in said
    assert re.search(r"^Uid:\s+65532\s+65532\s+65532\s+65532$", said, re.M), said
    assert re.search(r"^CapEff:\s+0+$", said, re.M), said
    assert "limits.json" in said and "adjustment-log/" in said, said


def test_names_are_resolved_in_it_and_requests_reach_ray(rootfs, tmp_path):
    """By /etc/hosts, which a controller mounts; the C library is static, and there is none beside it."""
    copy = tmp_path / "rootfs"
    shutil.copytree(rootfs, copy, symlinks=True)
    (copy / "etc/hosts").write_text("127.0.0.1 localhost\n127.0.0.1 ray-head\n")
    (tmp_path / "index.html").write_text("a page of Ray's dashboard")
    said = in_namespaces(
        """
        (cd "$PAGES" && exec python3 -m http.server 18265 --bind 127.0.0.1 >/dev/null 2>&1) &
        inside run --upstream http://ray-head:18265 --listen 127.0.0.1:8265 --state-dir /var/lib/rayguard &
        healthy
        for _ in $(seq 100); do
            if python3 -c 'import urllib.request as u; print(u.urlopen("http://127.0.0.1:8265/").read().decode())' 2>/dev/null; then exit 0; fi
            sleep 0.1
        done
        exit 1
        """,
        copy,
        PAGES=str(tmp_path),
    )
    assert "a page of Ray's dashboard" in said


def test_the_dockerfile_makes_an_image_of_it():
    """What a controller would be told: the same script, no user of root's, a health check by the binary."""
    build, final = DOCKERFILE.split("\nFROM scratch\n")
    assert "RUN bash .ci/release rootfs" in build
    assert "COPY --from=build /src/target/shipped/rootfs /\n" in final
    assert "\nUSER 65532:65532\n" in final and "\nRUN " not in final
    check = re.search(r'^HEALTHCHECK .*CMD \["/usr/local/bin/rayguard", "(\w+)"\]$', final, re.M)
    assert check and run(STATIC, check[1], "--help")
    ignored = (ROOT / "config/deploy/image/Dockerfile.dockerignore").read_text().split()
    assert "target" in ignored and not {"src", "config", ".ci", "benches", "Cargo.lock"} & set(ignored)


WITH_PODMAN = pytest.mark.skipif(not (shutil.which("podman") or os.environ.get("CI")), reason="podman is not installed")
# Limits that a machine may refuse to raise are left as they are.
CONTAINERS = '''[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
runtime = "runc"
[network]
network_backend = "netavark"
'''


@WITH_PODMAN
def test_the_image_runs_read_only_without_capabilities_and_says_that_it_is_healthy(shipped, tmp_path):
    """The Dockerfile's last stage, built and run by a controller: user, command, health check and size are the image's own."""
    (tmp_path / "containers.conf").write_text(CONTAINERS)
    environment = {**os.environ, "OUT": str(shipped), "CONTAINERS_CONF": str(tmp_path / "containers.conf")}
    image = run("bash", ROOT / ".ci/release", "image", env=environment).stdout.split()[-1]

    def podman(*arguments, **how):
        return run("podman", *arguments, env=environment, **how).stdout.strip()

    assert int(podman("image", "inspect", image, "--format", "{{.Size}}")) <= 20 << 20
    confined = ("--network", "none", "--read-only", "--cap-drop", "ALL", "--volume", "/var/lib/rayguard")
    container = podman("run", "--detach", *confined, image, "run")
    try:
        check = "for _ in $(seq 100); do podman healthcheck run $0 && exit; sleep 0.1; done; podman logs $0; exit 1"
        run("bash", "-c", check, container, env=environment)
        assert podman("top", container, "user", "capeff").splitlines()[1].split() == ["rayguard", "none"]
        podman("stop", "--time", "20", container)
        assert podman("inspect", container, "--format", "{{.State.ExitCode}}") == "0"
        volume = Path(podman("inspect", container, "--format", "{{(index .Mounts 0).Source}}"))
        assert next(volume.rglob("limits.json")).stat().st_uid == 65532, "the new volume can be written"
    finally:
        podman("rm", "--force", "--volumes", container)
        podman("rmi", "--force", image)


@WITH_PODMAN
def test_the_compose_file_comes_up_and_the_head_is_reached_through_rayguard_alone(shipped, tmp_path):
    """In a network of its own, with the image of above. Where it has Ray's image stands a head that knows its version."""
    file = ROOT / "config/deploy/compose/compose.yaml"
    ray = yaml.safe_load(file.read_text())["services"]["ray-head"]["image"]
    shutil.copy("/bin/busybox", tmp_path)
    (tmp_path / "ray").write_text('#!/bin/busybox sh\ncase "$*" in *--head*) exec busybox httpd -f -p 8265 -h /www ;; *) exec busybox sleep 1000 ;; esac\n')
    (tmp_path / "ray").chmod(0o755)
    (tmp_path / "www/api").mkdir(parents=True)
    (tmp_path / "www/api/version").write_text('{"ray_version": "2.60.0", "version": "4", "ray_commit": "x", "session_name": "s"}')
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY busybox ray /bin/\nCOPY www /www\nENV PATH=/bin\nSTOPSIGNAL SIGKILL\n")
    (tmp_path / "containers.conf").write_text(CONTAINERS)
    limits = {"ulimits": {"nofile": min(65536, resource.getrlimit(resource.RLIMIT_NOFILE)[1]), "nproc": 1024}}
    (tmp_path / "limits.yaml").write_text(yaml.safe_dump({"services": {"ray-head": limits, "rayguard": limits}}))
    environment = {**os.environ, "OUT": str(shipped), "CONTAINERS_CONF": str(tmp_path / "containers.conf"), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    image = run("bash", ROOT / ".ci/release", "image", env=environment).stdout.split()[-1]
    script = f"""set -eu
        compose() {{ podman-compose -p composed -f {file} -f limits.yaml "$@" >compose.log 2>&1 || {{ cat compose.log; exit 1; }}; }}
        trap 'podman logs composed_rayguard_1; compose down --volumes' EXIT
        ip link set lo up
        buildah bud --quiet --isolation chroot --format docker --tag docker.io/{ray} .
        podman tag {image} localhost/rayguard
        timeout 120 podman-compose -p composed -f {file} -f limits.yaml up --detach --no-build >compose.log 2>&1 || {{ cat compose.log; exit 1; }}
        for _ in $(seq 100); do podman healthcheck run composed_rayguard_1 && break; sleep 0.1; done
        podman healthcheck run composed_rayguard_1
        podman ps --format '{{{{.Names}}}} {{{{.Ports}}}}.'
        podman inspect composed_rayguard_1 --format 'read-only: {{{{.HostConfig.ReadonlyRootfs}}}}'
        podman top composed_rayguard_1 user capeff
        {sys.executable} -c 'import urllib.request as u; print(u.urlopen("http://127.0.0.1:8265/api/version", timeout=9).read().decode())'
        podman exec composed_ray-worker_1 busybox wget -qO- http://rayguard:9465/metrics | grep ^rayguard_requests | head -n 1
    """
    try:
        done = run("unshare", "--net", "bash", "-c", script, check=False, cwd=tmp_path, env=environment)
    finally:
        run("podman", "rmi", "--force", image, f"docker.io/{ray}", env=environment, check=False)
    said = done.stdout
    assert done.returncode == 0, f"{said}\n{done.stderr}"
    assert re.search(r"^composed_ray-head_1 \.$", said, re.M) and re.search(r"^composed_ray-worker_1 \.$", said, re.M), said
    published = re.search(r"^composed_rayguard_1 (.*)\.$", said, re.M)[1].split(", ")
    assert sorted(published) == sorted(f"127.0.0.1:{port}->{port}/tcp" for port in (8265, 10001, 9465))
    assert "read-only: true" in said and re.search(r"^rayguard +none$", said, re.M), said
    assert '"ray_version": "2.60.0"' in said and "\nrayguard_requests" in said, said


def test_the_workflows_image_is_the_dockerfiles_last_stage(tmp_path):
    (tmp_path / "rootfs").mkdir()
    for architecture in ("x86_64", "aarch64"):
        (tmp_path / "rootfs/for").write_text(architecture)
        run("tar", "-C", tmp_path, "-cf", tmp_path / f"rootfs-{architecture}.tar", "rootfs")
    run("bash", ROOT / ".ci/release", "context", env={**os.environ, "OUT": str(tmp_path)})
    made = (tmp_path / "context/Dockerfile").read_text()
    final = "FROM scratch\n" + DOCKERFILE.split("\nFROM scratch\n")[1]
    assert made.replace("ARG TARGETARCH\n", "").replace("COPY $TARGETARCH/rootfs /", "COPY --from=build /src/target/shipped/rootfs /") == final
    assert made.startswith("FROM scratch\nARG TARGETARCH\n") and "\nCOPY $TARGETARCH/rootfs /\n" in made
    assert (tmp_path / "context/amd64/rootfs/for").read_text() == "x86_64"
    assert (tmp_path / "context/arm64/rootfs/for").read_text() == "aarch64"


def test_the_tarball_has_what_a_host_needs_and_its_checksum_holds(shipped, tmp_path):
    archive = next(shipped.glob("rayguard-*-linux.tar.gz"))
    run("sha256sum", "--check", f"{archive.name}.sha256", cwd=shipped)
    with tarfile.open(archive) as opened:
        assert all(member.uid == member.gid == 0 for member in opened)
        opened.extractall(tmp_path, filter="data")
    root = tmp_path / archive.name.removesuffix(".tar.gz")
    files = sorted(str(each.relative_to(root)) for each in root.rglob("*") if each.is_file())
    assert files == [
        "CHANGELOG.md", "README.md", "bin/rayguard", "completions/_rayguard", "completions/rayguard.bash",
        "completions/rayguard.fish", "licenses/LICENSE", "licenses/THIRD-PARTY-LICENSES.txt", "man/man1/rayguard.1",
        "minimal.toml", "rayguard.toml", "systemd/rayguard.service", "systemd/rayguard.socket",
    ]  # fmt: skip
    version = re.search(r'^version = "(.+)"$', (ROOT / "Cargo.toml").read_text(), re.M)[1]
    assert run(root / "bin/rayguard", "--version").stdout == f"rayguard {version}\n"
    run("bash", "-n", root / "completions/rayguard.bash")
    assert ".TH rayguard" in (root / "man/man1/rayguard.1").read_text()
    run(root / "bin/rayguard", "check", "--config", root / "rayguard.toml")
    assert not run("readelf", "-l", root / "bin/rayguard").stdout.count("INTERP"), "it needs no loader"


def test_every_crate_that_is_linked_in_has_its_licence_told(shipped):
    told = (shipped / "THIRD-PARTY-LICENSES.txt").read_text()
    tree = run("cargo", "tree", "--locked", "--package", "rayguard", "--edges", "normal", "--prefix", "none", "--format", "{p}", cwd=ROOT).stdout
    linked = {tuple(line.split()[:2]) for line in tree.splitlines() if line.strip()}
    assert {"hyper", "tokio", "ring"} <= {name for name, _ in linked}
    for name, version in linked:
        assert name == "rayguard" or f"\n{name} {version[1:]} (" in told, name
    assert "\nthe Rust standard library (" in told
    assert "Permission is hereby granted, free of charge" in told and "GNU LESSER GENERAL PUBLIC LICENSE" in told


def test_the_sbom_is_cyclonedx_and_complete(shipped):
    import json

    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    text = next(shipped.glob("*.cdx.json")).read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    made = json.loads(text)
    linked = run("cargo", "tree", "--locked", "--package", "rayguard", "--edges", "normal", "--prefix", "none", "--format", "{p}", cwd=ROOT).stdout
    packages = {tuple(line.split()[:2]) for line in linked.splitlines() if line.strip()}
    listed = {(each["name"], "v" + each["version"]) for each in [made["metadata"]["component"], *made["components"]]}
    assert listed == packages
    assert {each["ref"] for each in made["dependencies"]} == {each["purl"] for each in [made["metadata"]["component"], *made["components"]]}
