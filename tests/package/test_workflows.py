"""The workflows: what a runner would refuse, and what of their steps can be carried out on any machine."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, run

WORKFLOWS = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / ".github/workflows").glob("*.yml")}
RELEASE = WORKFLOWS["release"]["jobs"]
VERSION = re.search(r'^version = "(.+)"$', (ROOT / "Cargo.toml").read_text(), re.M)[1]
STEPS = [(f"{name}/{job}", step) for name, flow in WORKFLOWS.items() for job, each in flow["jobs"].items() for step in each["steps"]]
SCRIPTS = [(where, step["run"]) for where, step in STEPS if "run" in step]


def script(job, words):
    """The one script of a job that has these words, its expressions filled in."""
    (found,) = [step["run"] for step in RELEASE[job]["steps"] if words in step.get("run", "")]
    return found.replace("${{ matrix.architecture }}", "x86_64")


def carry_out(text, folder, **environment):
    return subprocess.run(["bash", "-e", "-o", "pipefail", "-c", text], cwd=folder, env={"PATH": "/usr/bin:/bin", **environment}, capture_output=True, text=True, check=False)


def artifacts(action):
    return [(job, step["with"]) for job, each in RELEASE.items() for step in each["steps"] if step.get("uses", "").startswith(f"actions/{action}-artifact@")]


def test_jobs_wait_for_jobs_that_are_there_and_outputs_have_a_step():
    for name, flow in WORKFLOWS.items():
        for job in flow["jobs"].values():
            needs = job.get("needs", [])
            assert set([needs] if isinstance(needs, str) else needs) <= set(flow["jobs"])
            ids = {step.get("id") for step in job["steps"]}
            assert set(re.findall(r"steps\.(\w+)\.outputs", str(job))) <= ids
            assert job["timeout-minutes"] <= (150 if "nightly" in name else 90)


@pytest.mark.parametrize(("where", "text"), SCRIPTS)
def test_every_script_is_bash_and_runs_files_by_their_own_interpreter(where, text):
    run("bash", "-n", input=re.sub(r"\$\{\{.*?\}\}", "x", text))
    for interpreter, file in re.findall(r"\b(bash|python3?|sh) (\.?[\w./-]+)", text):
        first = (ROOT / file).read_text().splitlines()[0]
        assert first.rsplit(maxsplit=1)[-1].startswith(interpreter.rstrip("3")), f"{where}: {file} is not for {interpreter}: {first}"


def test_every_python_file_is_sound():
    scripts = [".ci/newcomer", ".ci/supply", ".ci/site"]
    files = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    checked = subprocess.run([sys.executable, "-m", "pyflakes", *files, *scripts], cwd=ROOT, capture_output=True, text=True, check=False)
    assert len(files) > 50 and checked.returncode == 0, checked.stdout + checked.stderr


def test_every_part_that_a_workflow_asks_of_the_release_script_is_one(tmp_path):
    known = re.findall(r"^#   bash \.ci/release ([\w-]+)", (ROOT / ".ci/release").read_text(), re.M)
    asked = [part for _, text in SCRIPTS for parts in re.findall(r"\.ci/release ([a-z -]+)", text) for part in parts.split()]
    assert {"binary", "wheel", "sdist", "chart", "notes"} <= set(asked) <= set(known)


# One of each kind that the build job hands over, and what the publishing job makes itself.
SHIPPED = (
    f"rayguard-{VERSION}.tar.gz", f"rayguard-{VERSION}-x86_64-linux.tar.gz", f"rayguard-{VERSION}-x86_64-linux.tar.gz.sha256",
    f"rayguard-{VERSION}-py3-none-manylinux2014_x86_64.whl", f"rayguard-{VERSION}.tgz", f"rayguard-{VERSION}.cdx.json",
    "rootfs-x86_64.tar", "rootfs-aarch64.tar",
)  # fmt: skip
MADE = ("notes.md", "SHA256SUMS")


def test_nothing_is_published_before_a_maintainer_agrees():
    published = 0
    for job in RELEASE.values():
        for step in job["steps"]:
            text, given = step.get("run", ""), step.get("with", {})
            public = re.search(r"cargo publish|gh release|helm push|imagetools create", text) or "pypi-publish" in step.get("uses", "") or given.get("push")
            if public:
                published += 1
                assert job["environment"] == "release" and job["if"] == "github.ref_type == 'tag'", step
    assert published == 5


def test_a_bill_of_materials_is_named_in_full():
    """The action that attests takes a path there, and no pattern."""
    (path,) = [step["with"]["sbom-path"] for _, step in STEPS if "sbom-path" in step.get("with", {})]
    version = script("build", "GITHUB_OUTPUT").replace("$GITHUB_OUTPUT", "/dev/stdout")
    assert carry_out(version, ROOT).stdout == f"number={VERSION}\n"
    assert path.replace("${{ steps.version.outputs.number }}", VERSION) == f"target/shipped/rayguard-{VERSION}.cdx.json"


def test_what_one_job_hands_over_lies_where_the_next_looks():
    """An artifact's paths begin at what they have in common; so all of one folder, or they are unpacked a folder deeper."""
    ((_, up),) = artifacts("upload")
    paths = [Path(path.replace("${{ matrix.architecture }}", "*")) for path in up["path"].splitlines()]
    assert {str(path.parent) for path in paths} == {"target/shipped"}
    for name in SHIPPED:
        assert any(Path(name).match(path.name) for path in paths), f"{name} is not handed over"
    for job, down in artifacts("download"):
        assert down["path"] == "target/shipped", "where .ci/release looks for them too"
        text = "\n".join(step.get("run", "") for step in RELEASE[job]["steps"]).replace("${GITHUB_REF_NAME#v}", VERSION)
        for word in set(re.findall(r"\btarget/shipped/([\w.*-]+)", text)) - {"context"}:
            assert any(Path(name).match(word) for name in SHIPPED + MADE), f"{job}: nothing is called {word}"


def test_a_tag_that_is_not_the_version_stops_the_release():
    check = script("build", "GITHUB_REF_NAME").splitlines()[0]
    assert carry_out(check, ROOT, GITHUB_REF_NAME=f"v{VERSION}").returncode == 0
    assert carry_out(check, ROOT, GITHUB_REF_NAME="v9.9.9").returncode == 1


def test_wheels_and_source_are_what_goes_to_pip(tmp_path):
    text = script("publish", "mkdir wheels").partition("mkdir wheels")
    shipped = tmp_path / "target/shipped"
    shipped.mkdir(parents=True)
    for version in ("0.1.0", "1.12.10"):
        for name in (f"rayguard-{version}.tar.gz", f"rayguard-{version}-x86_64-linux.tar.gz", f"rayguard-{version}-py3-none-manylinux2014_x86_64.whl"):
            (shipped / name).write_text("")
        done = carry_out("".join(text[1:]), tmp_path, GITHUB_REF_NAME=f"v{version}")
        assert done.returncode == 0, done.stderr
        assert sorted(each.name for each in (tmp_path / "wheels").iterdir()) == [f"rayguard-{version}-py3-none-manylinux2014_x86_64.whl", f"rayguard-{version}.tar.gz"]
        shutil.rmtree(tmp_path / "wheels")
        for each in shipped.iterdir():
            each.unlink()


def test_the_checksums_name_each_file_that_is_published(tmp_path):
    for name in SHIPPED:
        (tmp_path / name).write_text(name)
    run("bash", ROOT / ".ci/release", "checksums", env={**os.environ, "OUT": str(tmp_path)})
    run("sha256sum", "--check", "SHA256SUMS", cwd=tmp_path)
    summed = {line.split()[1] for line in (tmp_path / "SHA256SUMS").read_text().splitlines()}
    published = re.findall(r"target/shipped/(\*\.[\w.]+)", script("publish", "gh release create"))
    assert summed == {name for name in SHIPPED if any(Path(name).match(word) for word in published)}


def test_the_notes_are_the_versions_section_of_the_changelog(tmp_path):
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/supply", tmp_path / ".ci")
    changelog = tmp_path / "CHANGELOG.md"
    changelog.write_text("# Changelog\n\n## [Unreleased]\n\n## [1.2.0] - 2027-01-31\nWhat is new.\n\n### Proxy\n- faster\n\n## [1.1.0]\nolder\n")
    notes = lambda version: run(sys.executable, tmp_path / ".ci/supply", "notes", version, check=False)
    assert notes("1.2.0").stdout == "What is new.\n\n### Proxy\n- faster\n"
    assert notes("1.1.0").stdout == "older\n"
    for version in ("Unreleased", "1.3.0", "1.2"):
        assert notes(version).returncode == 1 and "no section" in notes(version).stderr
