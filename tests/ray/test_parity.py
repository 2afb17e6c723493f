"""What Ray answers is what comes through the proxy: status, headers and body, byte for byte."""

import os
import re

import pytest
from proxy import ask

STABLE = [
    "/",
    "/favicon.ico",
    "/timezone",
    "/api/version",
    "/api/authentication_mode",
    "/api/gcs_healthz",
    "/api/jobs/",
    "/api/jobs/{job}",
    "/api/jobs/{job}/logs",
    "/api/jobs/absent",
    "/api/jobs/absent/logs",
    "/api/packages/gcs/absent.zip",
    "/api/packages/absent/absent.zip",
    "/api/v0/cluster_metadata",
    "/api/v0/placement_groups",
    "/api/v0/actors?limit=0",
    "/api/v0/tasks?limit=-1",
    "/api/v0/absent",
    "/api/profiling_enabled",
    "/nodes?view=hostNameList",
    "/nodes?view=absent",
    "/api/prometheus/sd",
    "/static/absent.js",
    "/absent",
    "/api/jobs",
    "//api/version",
    "/api/%6Aobs/",
    "/api/version?a=1&a=2&%20=+",
    "/cluster_id",
    "/usage_stats_enabled",
]

# Bodies hold the moment (ages, loads, times): the shape must agree, not every number.
MOVING = [
    "/nodes?view=summary",
    "/nodes?view=details",
    "/logical/actors",
    "/events",
    "/api/cluster_status",
    "/api/cluster_status?format=1",
    "/api/component_activities",
    "/api/v0/nodes",
    "/api/v0/actors",
    "/api/v0/jobs",
    "/api/v0/tasks?detail=1&limit=5",
    "/api/v0/tasks/summarize",
    "/api/v0/actors/summarize",
    "/api/v0/objects/summarize",
    "/api/v0/objects",
    "/api/v0/workers",
    "/api/v0/runtime_envs",
    "/api/v0/logs",
    "/api/serve/applications/",
    "/api/grafana_health",
    "/api/prometheus_health",
]

CLIENTS = {
    "sdk": {"User-Agent": "python-requests/2.34.2", "Accept": "*/*", "Accept-Encoding": "gzip, deflate"},
    "browser": {
        "User-Agent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36",
        "Accept": "text/html,application/json",
        "Accept-Encoding": "gzip, deflate, br",
        "Sec-Fetch-Mode": "cors",
        "Sec-Fetch-Site": "same-origin",
        "Cookie": "a=1; b=2",
    },
}


def same(direct, through):
    assert (through.status, through.reason) == (direct.status, direct.reason)
    assert through.comparable_headers() == direct.comparable_headers()
    assert through.body == direct.body


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("path", STABLE)
def test_a_stable_answer_is_byte_equal(head, proxy, finished_job, path, client):
    path = path.format(job=finished_job)
    headers = CLIENTS[client] | {"Host": f"127.0.0.1:{head.ports['dashboard']}"}
    ask(head.url, path=path, headers=headers)  # Ray's own caches are warm for both
    same(ask(head.url, path=path, headers=headers), ask(proxy.url, path=path, headers=headers))


@pytest.mark.parametrize("path", MOVING)
def test_a_moving_answer_has_the_same_shape(head, proxy, work, path):
    direct, through = (ask(url, path=path, headers=CLIENTS["sdk"]) for url in (head.url, proxy.url))
    assert (through.status, through.reason) == (direct.status, direct.reason)
    assert [name for name, _ in through.comparable_headers()] == [name for name, _ in direct.comparable_headers()]
    assert through.header("content-type") == direct.header("content-type")
    if "json" in (direct.header("content-type") or "") and direct.header("content-encoding") is None:
        assert through.json().keys() == direct.json().keys()


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "PATCH", "DELETE", "PUT", "POST"])
@pytest.mark.parametrize("path", ["/api/version", "/api/jobs/", "/api/jobs/absent", "/nodes", "/", "/absent"])
@pytest.mark.parametrize("client", CLIENTS)
def test_other_methods_are_answered_as_ray_answers_them(head, proxy, method, path, client):
    if (method, path, client) == ("POST", "/api/jobs/", "sdk"):
        body = b'{"not": "a job"}'
    else:
        body = b"" if method in ("PATCH", "DELETE", "PUT", "POST") else None
    answers = [ask(url, method, path, CLIENTS[client], body) for url in (head.url, proxy.url)]
    # A refused body's message may hold a traceback with addresses of objects.
    for answer in answers:
        answer.body = re.sub(rb"0x[0-9a-f]+", b"0x", answer.body)
    same(*answers)


def test_every_script_of_the_dashboard_is_byte_equal(head, proxy):
    index = ask(head.url, path="/").body.decode()
    files = re.findall(r'(?:src|href)="\./?([^"]+\.(?:js|css|ico|png|svg))"', index)
    assert files, index
    for file in files:
        for encoding in ("identity", "gzip"):
            headers = {"Accept-Encoding": encoding}
            same(ask(head.url, path=f"/{file}", headers=headers), ask(proxy.url, path=f"/{file}", headers=headers))


def test_a_range_and_a_condition_reach_ray(head, proxy):
    headers = {"Range": "bytes=10-99"}
    file = re.search(r'src="\./?(static/js/[^"]+)"', ask(head.url, path="/").body.decode())[1]
    direct, through = (ask(url, path=f"/{file}", headers=headers) for url in (head.url, proxy.url))
    assert direct.status == 206
    same(direct, through)
    headers = {"If-None-Match": direct.header("etag")}
    direct, through = (ask(url, path=f"/{file}", headers=headers) for url in (head.url, proxy.url))
    assert direct.status == 304
    same(direct, through)


def test_a_package_comes_back_as_it_went(head, proxy):
    content = os.urandom(5_000_000)
    put = ask(proxy.url, "PUT", "/api/packages/gcs/_ray_pkg_through_the_proxy.zip", CLIENTS["sdk"], content)
    assert put.status == 200, put.body
    for url in (head.url, proxy.url):
        assert ask(url, path="/api/packages/gcs/_ray_pkg_through_the_proxy.zip").status == 200
    again = [ask(url, "PUT", "/api/packages/gcs/_ray_pkg_direct.zip", CLIENTS["sdk"], content) for url in (head.url, proxy.url)]
    same(*again)


def test_a_package_over_rays_own_limit_gets_rays_own_refusal(head, proxy):
    content = bytes(105 << 20)
    path = "/api/packages/gcs/_ray_pkg_too_large.zip"
    direct, through = (ask(url, "PUT", path, CLIENTS["sdk"], content, timeout=60) for url in (head.url, proxy.url))
    assert direct.status == 413
    assert (through.status, through.body) == (direct.status, direct.body)
