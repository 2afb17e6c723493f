"""What a person sees when a request is refused: a sentence, wherever Ray's tools show one."""

import asyncio
import re

import pytest
from proxy import Proxy, ask

# One of each, then an hour of nothing.
STRICT = """
[class.job-submit]
rate = { initial = "1/h", min = "1/h", max = "1/h", burst = 1 }
queue = { len = 0, wait = "1s" }
[class.state-light]
rate = { initial = "1/h", min = "1/h", max = "1/h", burst = 1 }
queue = { len = 0, wait = "1s" }
coalesce = "off"
[class.log-tail]
in_flight = 1
coalesce = "off"
"""
SENTENCE = r"rayguard: .+ Nothing was sent to Ray; please try again in \d+ seconds?\."


@pytest.fixture(scope="module")
def strict(head):
    with Proxy(head, STRICT) as proxy:
        job = {"User-Agent": "python-requests/2.34.2", "Content-Type": "application/json"}
        first = ask(proxy.url, "POST", "/api/jobs/", job, b'{"entrypoint": "sleep 300", "submission_id": "raysubmit_first"}')
        assert first.status == 200, first.body
        assert ask(proxy.url, path="/api/v0/nodes").status == 200
        yield proxy


@pytest.fixture
def client(head, strict, monkeypatch):
    for name, value in head.env.items():
        if name.startswith("RAY_"):
            monkeypatch.setenv(name, value)
    from ray.job_submission import JobSubmissionClient

    return JobSubmissionClient(strict.url)


def test_a_refusal_carries_what_machines_read(strict):
    refused = ask(strict.url, path="/api/v0/nodes")
    assert refused.status in (429, 503)
    assert int(refused.header("retry-after")) >= 1
    assert refused.header("x-rayguard-reason")
    assert refused.header("x-rayguard-request-id")
    assert '"state-light"' in refused.header("ratelimit")
    envelope = refused.json()
    assert envelope["result"] is False
    assert re.search(SENTENCE, envelope["msg"])


def test_the_sdk_raises_the_sentence(client):
    with pytest.raises(RuntimeError, match=r"Request failed with status code (429|503): " + SENTENCE):
        client.submit_job(entrypoint="echo never")


def test_ray_job_submit_prints_the_sentence(head, strict):
    said = head.run("ray", "job", "submit", "--address", strict.url, "--", "echo", "never", check=False)
    assert re.search(SENTENCE, said.replace("\n", " ")), said


def test_nothing_is_uploaded_for_a_job_that_would_be_refused(head, strict, tmp_path):
    (tmp_path / "main.py").write_text("print('never')\n")
    said = head.run(
        "ray", "job", "submit", "--address", strict.url, "--working-dir", str(tmp_path), "--", "python", "main.py", check=False
    )  # fmt: skip
    assert re.search(SENTENCE, said.replace("\n", " ")), said
    package = re.search(r"(_ray_pkg_\w+\.zip)", said)
    assert package, said
    assert ask(head.url, path=f"/api/packages/gcs/{package[1]}").status == 404


def test_ray_list_prints_the_sentence(head, strict, monkeypatch):
    said = head.run("ray", "list", "nodes", "--address", strict.url, check=False)
    assert re.search(SENTENCE, re.sub(r"\s+", " ", said)), said
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    from ray.util.state import list_nodes
    from ray.util.state.exception import RayStateApiException

    with pytest.raises(RayStateApiException, match=SENTENCE):
        list_nodes(address=strict.url)


def test_a_tail_too_many_is_refused_at_its_handshake(client):
    import aiohttp

    async def two_tails():
        first = client.tail_job_logs("raysubmit_first")
        waiting = asyncio.ensure_future(anext(first))
        await asyncio.sleep(1.0)  # the first must hold its slot
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await anext(client.tail_job_logs("raysubmit_first"))
        assert refused.value.status in (429, 503)
        waiting.cancel()

    asyncio.run(two_tails())


def test_what_must_work_when_all_else_is_refused_works(head, strict):
    for path in ("/api/version", "/api/gcs_healthz", "/", "/api/authentication_mode"):
        assert ask(strict.url, path=path).status == 200
    assert "raysubmit_first" in head.run("ray", "job", "list", "--address", strict.url)
    assert head.run("ray", "job", "stop", "--address", strict.url, "raysubmit_first")


@pytest.mark.parametrize("path", ["/api/v0/delay/5", "/test/dump"])
def test_test_only_routes_are_closed(strict, path):
    refused = ask(strict.url, path=path)
    assert refused.status == 404
    assert b"is blocked (class blocked)" in refused.body
    assert refused.header("x-rayguard-reason") == "blocked"


def test_every_refusal_is_in_the_log(strict):
    from head import wait_until

    request = ask(strict.url, path="/api/v0/nodes").header("x-rayguard-request-id")
    wait_until(
        "the refusal in the adjustment log",
        lambda: any(line["request"] == request for line in strict.records("shed")) or strict.records("shed_summary"),
        20,
    )
