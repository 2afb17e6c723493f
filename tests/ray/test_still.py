"""Five minutes before a healthy head: nothing is shed, and no limit moves without a cause."""

from proxy import Proxy, Load
from head import Head

FIVE_MINUTES = """
duration_s = 300
[[stream]]
name = "polite"
rate = 2
timeout_s = 10
request = [{ path = "/api/jobs/" }, { path = "/api/v0/actors" }, { path = "/nodes?view=summary" }, { path = "/api/v0/tasks?limit={n}" }, { path = "/api/version" }]
"""


def test_the_loop_holds_still_on_a_healthy_head_for_five_minutes():
    with Head(quick_metrics=False) as head, Proxy(head) as proxy:
        polite = Load(proxy.url, FIVE_MINUTES).report()["windows"][0]["streams"]["polite"]
        assert set(polite["fates"]) == {"200"}, polite
        assert not proxy.records("shed") and not proxy.records("shed_summary")
        for line in proxy.records("adjustment"):
            # No cut, and no move of a reading that was within its deadband.
            assert line["new"] >= line["old"], line["reason"]
            for cited in line["signals"][:1]:
                assert abs(cited["pressure"] - 1) > 0.05, line["reason"]
        # A young head names its exporters one by one: that one of them is missed at first may be said.
        fired = {alert["alert"] for alert in proxy.records("alert") if alert["state"] == "firing"}
        assert fired <= {"signal-stale", "signal_stale"}
