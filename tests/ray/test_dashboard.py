"""The dashboard in a real browser: every request it makes is answered as Ray answers it."""

import re

import browser
import pytest

PAGES = ["/#/overview", "/#/jobs", "/#/cluster", "/#/actors", "/#/logs"]


@pytest.mark.skipif(browser.PROGRAM is None, reason="no Chromium on this machine")
def test_every_request_of_the_dashboard_is_answered_as_ray_answers_it(head, proxy, work):
    direct, through = (browser.visit(url, PAGES, seconds_each=6) for url in (head.url, proxy.url))
    assert through.failures == direct.failures == []
    assert by_route(through) == by_route(direct)
    assert len(by_route(direct)) > 10, "a dashboard that asks for nothing shows nothing"
    for word in ("Overview", "Jobs", "Cluster", "Actors", "SUCCEEDED"):
        assert word in through.text


def by_route(visit):
    """Statuses by method and route; ids and sizes differ from run to run."""
    routes = {}
    for (method, path), statuses in visit.answers.items():
        routes.setdefault((method, re.sub(r"[0-9a-f]{20,}|\d{3,}", "*", path)), set()).update(statuses)
    return routes
