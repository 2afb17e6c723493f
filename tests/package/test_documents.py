"""The Markdown of the repository: its site is built and its links hold; the commands in it are carried out where that can be,
and what is not carried out stands here with its reason."""

import functools
import importlib.machinery
import importlib.util
import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest
from conftest import RAYGUARD, ROOT, run


def load(name):
    loader = importlib.machinery.SourceFileLoader(name.replace("/", "_"), str(ROOT / name))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    sys.dont_write_bytecode = True
    loader.exec_module(module)
    return module


site = load(".ci/site")


@functools.cache
def pages():
    return {str(path): (ROOT / path).read_text() for path in site.tracked() if path.suffix == ".md"}


# === the site ===


def test_the_site_is_built_and_every_link_in_it_leads_somewhere(tmp_path):
    said = run(sys.executable, ROOT / ".ci/site", tmp_path / "site").stdout
    assert re.search(r"(\d+) links within it", said) and int(re.search(r"(\d+) links", said)[1]) > 300
    assert (tmp_path / "site/config/index.html").exists()


def test_a_link_that_leads_nowhere_is_found(tmp_path):
    page = pathlib.PurePosixPath("config/README.md")
    files = site.tracked()
    problems = []
    text = "[a](LIMITS.md) [b](../src/lib.rs) [c](deploy) [d](NOWHERE.md) ![e](../gone.png) [f](#heading)\n```\n[g](in code)\n```\n"
    written, _ = site.rewrite(page, text, {pathlib.PurePosixPath(each) for each in pages()}, files, problems)
    assert problems == ["config/README.md: NOWHERE.md leads nowhere", "config/README.md: ../gone.png leads nowhere"]
    assert "(LIMITS.md)" in written and f"({site.REPOSITORY}/blob/main/src/lib.rs)" in written and "(deploy/README.md)" in written
    (tmp_path / "index.html").write_text('<h1 id="here"></h1><a href="#here"></a><a href="#there"></a><a href="gone/"></a>')
    with pytest.raises(SystemExit) as stopped:
        site.check(tmp_path)
    assert "#there: no such heading" in str(stopped.value) and "gone/ leads nowhere" in str(stopped.value)


def test_the_readme_is_short():
    assert len(pages()["README.md"].splitlines()) <= 150


def test_every_readme_is_read_in_five_minutes():
    """At 240 words a minute; tables and code are for looking things up."""
    for path, text in pages().items():
        if path.endswith("README.md"):
            text = re.sub(r"```.*?```", "", text, flags=re.S)
            words = [word for line in text.splitlines() if not line.startswith(("|", "    ")) for word in line.split()]
            assert len(words) <= 1200, f"{path}: {len(words)} words"


# === the commands ===

# Carried out by something else, which must contain these words.
ELSEWHERE = {
    "pip install rayguard": (".ci/newcomer", 'block("On your Ray, in four lines")'),
    "rayguard up": (".ci/newcomer", "protects(way, up, time.monotonic())"),
    "export RAY_API_SERVER_ADDRESS=http://127.0.0.1:8266": (".ci/newcomer", "{export}"),
    "ray job submit --working-dir . -- python my_job.py": (".ci/newcomer", "{submit}"),
    "cargo run --release -- demo": (".ci/newcomer", 'block("Try it: two commands")'),
    "cargo test": (".ci/run", '"tests" cargo test --locked'),
    "cargo build": (".ci/run", "cargo build --locked --release"),
    "cargo run --release -- simulate simulations/": (".ci/run", "-- simulate simulations/"),
    "bash .ci/run": (".github/workflows/ci.yml", "bash .ci/run"),
}
USERS = pages()["config/USERS.md"]
RETRY = re.search(r"^```sh\n(.*?)^```", USERS, re.M | re.S)[1]
ELSEWHERE |= {line.strip(): ("tests/package/test_documents.py", "def test_a_users_loop_tries_again") for line in RETRY.splitlines()}
# Not carried out.
NOT = {
    "cargo test -p rayguard-core": "a part of `cargo test`, which is carried out",
    "bash .ci/run code": "a part of `bash .ci/run`",
    "bash .ci/run ray": "a part of `bash .ci/run`",
    "cargo run -p rayguard-core --example tower": "`cargo test` tests the example",
    "cargo run -p rayguard-lab --example scenario -- simulations/ray-healthy.toml": "builds the simulator a second time; `cargo test` compiles the example",
}


def shell_blocks():
    """`(file, line, command)` of every line of every `sh` and `console` block that has no `not run` mark next to it."""
    for file, text in sorted(pages().items()):
        for found in re.finditer(r"(?P<before><!-- not run: (?P<why>[^>]+) -->\n)?^```(?:sh|console)\n(?P<body>.*?)^```\n(?P<after><!-- not run: [^>]+ -->)?", text, re.M | re.S):
            if found["before"] or found["after"]:
                continue
            for line in found["body"].splitlines():
                command = re.sub(r"(^|\s+)#.*", "", line).strip()
                if command:
                    yield file, command


def test_every_command_in_a_shell_block_is_carried_out_or_has_a_reason():
    commands = list(shell_blocks())
    assert len(commands) >= 10
    for file, command in commands:
        if command in ELSEWHERE:
            where, words = ELSEWHERE[command]
            assert words in (ROOT / where).read_text(), f"{where} does not carry out `{command}`"
        else:
            assert command in NOT, f"{file}: `{command}` is carried out by nothing, and NOT says no reason"
    named = {command for _, command in commands}
    assert set(ELSEWHERE) | set(NOT) <= named, f"in no document: {(set(ELSEWHERE) | set(NOT)) - named}"


REFUSED = "RuntimeError: Request failed with status code 503: " + " ".join(re.search(r"^```\n(rayguard: .*?)\n```", USERS, re.M | re.S)[1].split())


def test_a_users_loop_tries_again_when_rayguard_says_and_only_then(tmp_path):
    """A `ray` that refuses twice, as the page shows it."""
    (tmp_path / "ray").write_text(
        '#!/bin/sh\necho "$*" >>calls\nif [ "$(wc -l <calls)" -gt "$REFUSALS" ]; then exit 0; fi\n'
        'echo "Traceback (most recent call last):"; echo "$ANSWER" >&2; exit 1\n'
    )
    (tmp_path / "sleep").write_text('#!/bin/sh\necho "sleep $1" >>slept\n')
    for program in ("ray", "sleep"):
        (tmp_path / program).chmod(0o755)

    def submit(answer, refusals=2):
        for left in ("calls", "slept"):
            (tmp_path / left).unlink(missing_ok=True)
        environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "ANSWER": answer, "REFUSALS": str(refusals)}
        return run("bash", "-c", RETRY, cwd=tmp_path, env=environment, timeout=20, check=False)

    assert submit(REFUSED).returncode == 0
    assert (tmp_path / "slept").read_text() == "sleep 4\n" * 2
    calls = (tmp_path / "calls").read_text().splitlines()
    assert len(calls) == 3 and len(set(calls)) == 1, "the same submission id each time"
    other = submit("RuntimeError: no such working directory")
    assert other.returncode == 1 and "no such working directory" in other.stdout and not (tmp_path / "slept").exists()


def test_a_users_function_tries_again_when_rayguard_says_and_only_then(tmp_path):
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray/job_submission.py").write_text(
        "import os, time\nasked = []\ntime.sleep = lambda seconds: print('sleep', seconds)\n"
        "class JobSubmissionClient:\n"
        "    def __init__(self, address): pass\n"
        "    def submit_job(self, entrypoint):\n"
        "        asked.append(entrypoint)\n"
        "        if len(asked) > 2: return 'raysubmit_x'\n"
        "        raise RuntimeError(os.environ['ANSWER'])\n"
    )
    function = re.search(r"^```python\n(.*?)^```", USERS, re.M | re.S)[1] + "print(job_id)\n"
    call = lambda answer: run(sys.executable, "-c", function, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path), "ANSWER": answer}, check=False)
    assert call(REFUSED).stdout == "sleep 4\nsleep 4\nraysubmit_x\n"
    other = call("no such working directory")
    assert other.returncode == 1 and "no such working directory" in other.stderr and not other.stdout


# Placeholders of the documents, and what stands for them.
HOME = {
    "FILE": "rayguard.toml", "DIR": "rayguard-state/adjustment-log", "REQUEST": "deadbeef-1", "REQUEST-ID": "deadbeef-1",
    "NAME": "job-list", "C": "job-list", "PLAN.toml": "plan.toml", "URL": "http://127.0.0.1:8266",
}  # fmt: skip


def words_of(command):
    """As a shell splits it; what a document leaves open is filled in."""
    words = shlex.split(command.replace("FILE...", "FILE"), comments=True)
    return [HOME.get(word, word) for word in words]


@functools.cache
def help_of(*command):
    done = run(RAYGUARD, *command, "--help", check=False)
    return done.stdout if done.returncode == 0 else None


def rayguard_commands():
    """Every `rayguard ...` in a document: in a block, in a table, in a sentence."""
    found = set()
    for file, text in pages().items():
        if file == "CHANGELOG.md":
            continue
        found |= {(file, command) for command in re.findall(r"`(rayguard [a-z][^`\n]*)`", text)}
        for block in re.findall(r"^```.*?\n(.*?)^```", text, re.M | re.S):
            commands = re.findall(r"^(?:\./target/release/)?(rayguard [a-z].*)$", block, re.M)
            found |= {(file, re.sub(r"\s+#.*", "", command).split(" > ")[0]) for command in commands}
    return sorted(found)


@pytest.mark.parametrize(("file", "command"), rayguard_commands())
def test_every_rayguard_command_in_a_document_is_one_the_program_takes(file, command):
    """Commands, subcommands and options are held to `--help`; their values by the runs below."""
    words = words_of(command)[1:]
    said = help_of(words[0])
    assert said is not None, f"{file}: `{command}`: there is no such command"
    if len(words) > 1 and re.fullmatch(r"[a-z]+", words[1]) and f"\n  {words[1]}" in said:
        said = help_of(*words[:2]) or said
    for word in words[1:]:
        if word.startswith("-"):
            assert re.search(rf"(^|\s|, ){re.escape(word.split('=')[0])}\b", said), f"{file}: `{command}`: no option {word}"


def test_documented_commands_work_against_a_running_rayguard(tmp_path):
    """In a network of its own, at the ports the documents name, in front of a head that only knows its version."""
    (tmp_path / "rayguard.toml").write_text((ROOT / "config/rayguard.toml").read_text())
    (tmp_path / "head.py").write_text(
        "import http.server\n"
        "class Head(http.server.BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        body = b'{\"ray_version\": \"2.60.0\", \"version\": \"4\", \"ray_commit\": \"x\", \"session_name\": \"s\"}'\n"
        "        self.send_response(200); self.send_header('Content-Length', str(len(body))); self.end_headers(); self.wfile.write(body)\n"
        "    def log_message(self, *_): pass\n"
        "http.server.ThreadingHTTPServer(('127.0.0.1', 8265), Head).serve_forever()\n"
    )
    carried_out = [
        "rayguard check --config FILE", "rayguard check --defaults", "rayguard status", "rayguard clients", "rayguard limits",
        "rayguard limits suggest", "rayguard log --since 1h --class job-submit", "rayguard health", "rayguard alerts",
        'rayguard pin job-submit rate=2 --for 1h --why "..."', 'rayguard pin job-submit in_flight=4 --for 1h --why "..."',
        "rayguard unpin job-submit rate", "rayguard replay DIR", "rayguard reload",
    ]  # fmt: skip
    known = {command for _, command in rayguard_commands()}
    missing = [each for each in carried_out if each not in known and each.split()[1] not in ("limits", "unpin", "alerts", "health", "reload", "replay")]
    assert not missing, f"no longer in a document: {missing}"
    lines = "\n".join(f"echo '$ {each}'; {shlex.join([RAYGUARD, *words_of(each)[1:]])} </dev/null" for each in carried_out)
    script = f"""set -eu
        ip link set lo up
        {sys.executable} head.py &
        for _ in $(seq 100); do (exec 3<>/dev/tcp/127.0.0.1/8265) 2>/dev/null && break; sleep 0.1; done
        {RAYGUARD} run --config rayguard.toml 2>log &
        for _ in $(seq 100); do {RAYGUARD} health 2>/dev/null && break; sleep 0.1; done
        {sys.executable} -c 'import urllib.request as u; [u.urlopen("http://127.0.0.1:8266/api/jobs/").read() for _ in range(3)]'
        {lines}
    """
    done = subprocess.run(
        ["unshare", "--net", "--pid", "--fork", "--kill-child", "bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}\n{(tmp_path / 'log').read_text()[-2000:]}"
    assert "ready" in done.stdout and "job-submit" in done.stdout and "verified" in done.stdout
