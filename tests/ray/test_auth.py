"""With Ray's token authentication on, the proxy neither weakens it nor stands in its way."""

import pytest
from proxy import Proxy, ask
from head import Head, wait_until

TOKEN = "a-token-of-thirty-two-characters"
BEARERS = {
    "none": {},
    "good": {"Authorization": f"Bearer {TOKEN}"},
    "bad": {"Authorization": "Bearer wrong"},
    "malformed": {"Authorization": TOKEN},
    "x-ray": {"X-Ray-Authorization": f"Bearer {TOKEN}"},
    "bad not rescued": {"Authorization": "Bearer wrong", "X-Ray-Authorization": f"Bearer {TOKEN}"},
    "cookie": {"Cookie": f"ray-authentication-token={TOKEN}"},
    "bad cookie": {"Cookie": "ray-authentication-token=wrong"},
}
EXPECTED = {"none": 401, "good": 200, "bad": 403, "x-ray": 200, "bad not rescued": 403, "cookie": 200}


@pytest.fixture(scope="module")
def guarded():
    with Head(token=TOKEN) as head, Proxy(head) as proxy:
        yield head, proxy


@pytest.mark.parametrize("bearer", BEARERS)
@pytest.mark.parametrize("path", ["/", "/api/version", "/api/jobs/", "/api/v0/nodes?limit=0", "/api/gcs_healthz", "/api/authentication_mode"])
def test_status_and_body_are_those_of_ray(guarded, bearer, path):
    head, proxy = guarded
    direct, through = (ask(url, path=path, headers=BEARERS[bearer]) for url in (head.url, proxy.url))
    assert (through.status, through.body) == (direct.status, direct.body)
    assert through.comparable_headers() == direct.comparable_headers()
    if path == "/api/jobs/" and bearer in EXPECTED:
        assert direct.status == EXPECTED[bearer]


def test_the_login_sets_rays_cookie(guarded):
    head, proxy = guarded
    for bearer in ("good", "bad", "none"):
        direct, through = (ask(url, "POST", "/api/authenticate", BEARERS[bearer], b"") for url in (head.url, proxy.url))
        assert (through.status, through.body) == (direct.status, direct.body)
        assert through.header("set-cookie") == direct.header("set-cookie")


@pytest.mark.parametrize("path", ["/api/jobs/", "/api/jobs/absent/stop"])
def test_a_post_that_looks_like_a_browsers_is_still_refused(guarded, path):
    head, proxy = guarded
    for mark in ({"User-Agent": "Mozilla/5.0"}, {"Origin": "http://elsewhere"}, {"Sec-Fetch-Mode": "cors"}):
        headers = BEARERS["good"] | mark
        direct, through = (ask(url, "POST", path, headers, b"{}") for url in (head.url, proxy.url))
        assert direct.status == 405
        assert (through.status, through.body) == (direct.status, direct.body)


def test_the_commands_work_with_the_token_and_not_without(guarded):
    head, proxy = guarded
    said = head.run("ray", "job", "submit", "--address", proxy.url, "--", "echo", "let in")
    assert "let in" in said
    said = head.run("ray", "job", "list", "--address", proxy.url, check=False, env={"RAY_AUTH_MODE": "disabled"})
    direct = head.run("ray", "job", "list", "--address", head.url, check=False, env={"RAY_AUTH_MODE": "disabled"})
    assert ("Authentication" in said) == ("Authentication" in direct)
    assert "let in" not in said


@pytest.mark.parametrize("way", ["metrics.token", "as Ray's commands find it"])
def test_the_exporters_are_found_with_rays_own_token(guarded, way):
    head, _ = guarded
    path = head.directory / "token"
    tables = '[metrics]\ndiscovery_file = "off"\ninterval = "1s"\ntimeout = "900ms"\n'
    env = {}
    if way == "metrics.token":
        tables += f'token = {{ file = "{path}" }}\n'
    else:
        env = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(path)}
    with Proxy(head, tables, env=env) as proxy:
        def is_read():
            fresh = [line["signal"] for line in proxy.records("signal_state") if line["state"] == "fresh"]
            return "head_cpu" in fresh

        wait_until("a reading of the head's exporters", is_read, 90)
        assert "found Ray's metrics" in proxy.log.read_text()
        for file in proxy.directory.rglob("*"):
            assert not file.is_file() or TOKEN.encode() not in file.read_bytes(), file


def test_without_the_token_the_log_says_what_to_do(guarded):
    _, proxy = guarded
    wait_until("advice", lambda: "metrics.token" in proxy.log.read_text(), 20)


def test_no_token_is_written_anywhere(guarded):
    _, proxy = guarded
    for path in proxy.directory.rglob("*"):
        if path.is_file():
            assert TOKEN.encode() not in path.read_bytes(), path
