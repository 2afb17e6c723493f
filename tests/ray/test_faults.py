"""Something breaks, under load, in front of the real binary: what is lost, what the limits do, what the log keeps.

The head is a real one where Ray's own death and revival is the question, and `faulty.py` where the
head must misbehave in ways that Ray cannot be talked into. Every test says what may fail: mostly
nothing.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from clients import Clients
from proxy import Proxy, ask
from faulty import TCP_REPAIR, FaultyHead, may_vanish
from head import Head, free_ports, wait_until
from receiver import Receiver

# Ray's readings are not the question: the proxy's own latency would be, on a machine as busy as this.
STILL = """
[class.views]
law = { kind = "static" }
"""
SIGNALS = ("negative", "nan", "absurd", "torn", "html", "huge", "slow", "down")


@pytest.fixture
def faulty():
    with FaultyHead() as head:
        yield head


def whole(proxy):
    """The adjustment log, held to its own promise: every line whole, no number twice, none missing without a word of it."""
    numbers, excused = [], 0
    for path in sorted((proxy.state / "adjustment-log").glob("*")):
        for line in path.read_text().splitlines():
            line = json.loads(line)
            numbers.append(line["seq"])
            excused += line.get("lost", 0) if line["event"] == "gap" else 0
    assert numbers == sorted(set(numbers)), "a number twice, or out of order"
    missing = (numbers[-1] - numbers[0] + 1) - len(numbers)
    assert missing <= excused, f"{missing} records are missing, {excused} are owned up to"
    return numbers


def within_bounds(proxy):
    for key, row in proxy.limits().items():
        assert row["min"] <= row["value"] <= row["max"], (key, row)


def under_way(proxy):
    """Exchanges that hold a place now, by the proxy's own count."""
    answer = ask(f"http://127.0.0.1:{proxy.admin_port}", path="/metrics", headers={"Host": f"127.0.0.1:{proxy.admin_port}"})
    lines = answer.body.decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("rayguard_in_flight{"))


def none_failed(clients, least=50):
    assert clients.served() >= least, clients.fates()
    assert not clients.failed(), clients.failed()


def test_ray_is_killed_and_comes_back():
    head = Head()
    with head:
        with Proxy(head) as proxy, Clients(proxy.url, "/api/gcs_healthz", count=3, pause_s=0.05) as clients:
            wait_until("answers", lambda: clients.served() > 20, 30)
            head.kill()
            died = time.monotonic()
            wait_until("the proxy's word for it", lambda: 503 in clients.fates(since=died), 20)
            time.sleep(3.0)
            # Every client was told at once, by the proxy, in its own name: none waited out a timeout.
            assert set(clients.fates(since=died + 1.0)) <= {502, 503}, clients.fates(since=died + 1.0)
            assert proxy.admin("/api/v1/state")["upstream_problem"]
            head.__enter__()  # the same ports, the same directory
            up = time.monotonic()
            wait_until("answers again", lambda: 200 in clients.fates(since=up), 10)
            time.sleep(5.0)
            assert set(clients.fates(since=up + 4.0)) == {200}, clients.fates(since=up + 4.0)
            within_bounds(proxy)
            whole(proxy)


def test_a_frozen_head_holds_no_client_up_for_long_and_is_not_hit_when_it_thaws(faulty):
    patience = '[class.job-status]\ntimeout = "2s"\nin_flight = { initial = 8, min = 4, max = 8 }\n'
    with Proxy(faulty, patience) as proxy, Clients(proxy.url, "/api/jobs/raysubmit_1", count=12, pause_s=0.1) as clients:
        wait_until("answers", lambda: clients.served() > 50, 20)
        faulty.signal(signal.SIGSTOP)
        frozen = time.monotonic()
        time.sleep(8.0)
        # The proxy itself is awake, and what waits at the head is bounded by the limit.
        assert ask(f"http://127.0.0.1:{proxy.admin_port}", path="/livez", timeout=1).status == 200
        assert under_way(proxy) <= 16
        faulty.signal(signal.SIGCONT)
        thawed = time.monotonic()
        time.sleep(6.0)
        during = clients.fates(since=frozen + 0.5, until=thawed - 5.0)
        assert during and set(during) <= {503, 504}, during
        longest = max(took for begun, took, _ in clients.exchanges)
        assert longest < 5.0, "two seconds in the queue and two at the head, at most"
        after = clients.fates(since=thawed + 3.0)
        assert set(after) == {200}, after
        within_bounds(proxy)
        whole(proxy)


def test_lines_to_ray_that_are_half_open_cost_no_more_than_what_was_on_them(faulty):
    if not may_vanish():
        pytest.skip("only an administrator's sockets can vanish without a word")
    # What was on a line that vanished is never heard of again: its class's time-out is what ends it.
    patience = '[class.job-status]\ntimeout = "2s"\n'
    with Proxy(faulty, STILL + patience) as proxy, Clients(proxy.url, "/api/jobs/raysubmit_1", count=8, pause_s=0.01) as clients:
        wait_until("answers", lambda: clients.served() > 200, 20)
        for _ in range(2):
            (faulty.directory / "vanished").unlink(missing_ok=True)
            moment = time.monotonic()
            faulty.feel("vanish")
            wait_until("they are gone", lambda: (faulty.directory / "vanished").exists(), 10)
            faulty.feel("well")
            time.sleep(10.0)
            # Each line that was open costs what was on it, or the next that is sent on it, at most.
            lost = clients.failed(since=moment - 0.2)
            assert set(lost) <= {502, 503, 504} and sum(lost.values()) <= 64 + 8, lost
            # What is gone for good is told by probes, which begin after five seconds.
            assert not clients.failed(since=moment + 7.0), clients.failed(since=moment + 7.0)
            assert clients.fates(since=moment + 7.0).get(200, 0) > 20
        within_bounds(proxy)
        wait_until("no place is held", lambda: under_way(proxy) <= 8, 10)
    wait_and_see = [took for _, took, _ in clients.exchanges]
    assert max(wait_and_see) < 5.0, "no client waited out a line that was dead"
    whole(proxy)


def test_clients_that_vanish_without_a_word_give_back_what_they_held(faulty):
    if not may_vanish():
        pytest.skip("only an administrator's sockets can vanish without a word")
    bounds = '[http]\nheader_timeout = "2s"\nidle_timeout = "3s"\n'
    with Proxy(faulty, STILL + bounds) as proxy, Clients(proxy.url, count=4) as clients:
        wait_until("answers", lambda: clients.served() > 20, 20)
        before = proxy.descriptors()
        crowd = []
        for number in range(300):
            one = socket.create_connection(("127.0.0.1", proxy.port))
            if number % 3:
                one.sendall(b"GET /api/version HTTP/1.1\r\nHost: a\r\n" + (b"\r\n" if number % 3 == 1 else b"X-Half: "))
            crowd.append(one)
        wait_until("they are connected", lambda: proxy.descriptors() >= before + 290, 20)
        for one in crowd:
            one.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
            one.close()
        gone = time.monotonic()
        # But for idle connections to Ray, of which there may be one for each who asked (64 for each core).
        wait_until("their descriptors are given back", lambda: proxy.descriptors() <= before + 100 + 8, 20)
        assert time.monotonic() - gone < 8.0, "the bounds on silence, and a little"
        wait_until("no place is held", lambda: under_way(proxy) <= 4, 10)
    none_failed(clients)


@pytest.mark.parametrize("how", ["refuses", "hangs"])
def test_alertmanager_is_down_and_what_fires_reaches_it_once_it_is_back(faulty, how):
    (port,) = free_ports(1)
    tables = (
        f'[[alerts.notify]]\nkind = "alertmanager"\nurl = "http://127.0.0.1:{port}"\n'
        '[alerts.rule.signal-stale]\nfor = "1s"\nclear = "1s"\n[signal.head_cpu]\nstale_after = "3s"\n'
    )
    hanging = socket.create_server(("127.0.0.1", port)) if how == "hangs" else None
    with Proxy(faulty, faulty.metrics + STILL + tables) as proxy, Clients(proxy.url, count=4) as clients:
        wait_until("a reading", lambda: signal_of(proxy)["health"] == "fresh", 20)
        before = {key: row["value"] for key, row in proxy.limits().items()}
        faulty.feel("down")
        wait_until("an alert", lambda: "firing" in stale_alert(proxy), 30)
        wait_until("it is known that no receiver takes it", lambda: "alert" in proxy.log.read_text(), 30)
        time.sleep(3.0)
        for key, row in proxy.limits().items():
            assert row["value"] <= before[key] * 1.01, (key, row)
        if hanging:
            hanging.close()
        receiver = Receiver(port)
        back = time.monotonic()
        told = lambda: [(at, alert["labels"]["alertname"]) for at, _, _, body in receiver.taken for alert in json.loads(body)]  # noqa: E731
        wait_until("it is told", told, 60)
        assert told()[0][0] - back < 40.0, "the longest pause between two attempts, and a little"
        receiver.close()
        whole(proxy)
    none_failed(clients, 200)


def test_answers_that_break_off_hold_no_place_and_hurt_no_neighbour(faulty):
    with Proxy(faulty, STILL) as proxy:
        with Clients(proxy.url, count=4) as polite, Clients(proxy.url, "/api/jobs/torn", count=4) as torn:
            wait_until("two hundred torn answers", lambda: len(torn.exchanges) > 200, 60)
        assert set(torn.fates()) <= {"IncompleteRead", "ConnectionResetError", "RemoteDisconnected", 502}, torn.fates()
        none_failed(polite)
        wait_until("no place is held", lambda: under_way(proxy) == 0, 10)


@pytest.mark.parametrize("mood", SIGNALS)
def test_a_metrics_page_that_lies_or_fails_costs_no_request_and_opens_no_limit(faulty, mood):
    quick = '[alerts.rule.signal-stale]\nfor = "1s"\nclear = "1s"\n[signal.head_cpu]\nstale_after = "3s"\n'
    with Proxy(faulty, faulty.metrics + quick + STILL) as proxy:
        wait_until("a reading", lambda: signal_of(proxy)["health"] == "fresh", 20)
        before = {key: row["value"] for key, row in proxy.limits().items()}
        with Clients(proxy.url, count=2) as clients:
            faulty.feel(mood)
            wait_until("it is noticed", lambda: signal_of(proxy)["problem"] or signal_of(proxy)["health"] != "fresh", 20)
            wait_until("an alert", lambda: "firing" in stale_alert(proxy), 30)
            for key, row in proxy.limits().items():
                assert row["value"] <= before[key] * 1.01, (mood, key, row)
            faulty.feel("well")
            wait_until("it is well again", lambda: signal_of(proxy)["health"] == "fresh", 20)
            wait_until("the alert ends", lambda: stale_alert(proxy)[-1:] == ["resolved"], 30)
        none_failed(clients)
        assert proxy.status("VmHWM") < 300 * 1024, "a page of 50 MiB is not kept"
        whole(proxy)


def signal_of(proxy, name="head_cpu"):
    return next(one for one in proxy.admin("/api/v1/signals") if one["name"] == name)


def stale_alert(proxy):
    return [line["state"] for line in proxy.records("alert") if line["alert"] in ("signal-stale", "signal_stale")]


def test_a_full_disk_stops_the_record_and_nothing_else(faulty):
    with Proxy(faulty, faulty.metrics + STILL) as proxy:
        pass  # for its directories
    mount = "mount -t tmpfs -o size=256k none"
    script = f'mkdir -p {proxy.state} && {mount} {proxy.state} && exec "$@"'
    flags = "-m" if os.geteuid() == 0 else "-Urm"
    proxy.command = ["unshare", flags, "sh", "-c", script, "sh", *proxy.command]
    with proxy, Clients(proxy.url, count=4) as clients:
        seen = Path(f"/proc/{proxy.session.popen.pid}/root{proxy.state}")  # its own view of the disk
        (seen / "filler").write_bytes(b"")
        filler = os.open(seen / "filler", os.O_WRONLY)
        try:
            while os.write(filler, bytes(4096)):
                pass
        except OSError:
            os.close(filler)
        fill_log(proxy, 30)
        wait_until("the alert", lambda: "adjustment-log-gaps" in [one["alert"] for one in proxy.admin("/api/v1/alerts")], 30)
        (seen / "filler").unlink()
        fill_log(proxy, 3)
        read = lambda: [json.loads(line) for path in sorted((seen / "adjustment-log").glob("*")) for line in path.read_text().splitlines()]  # noqa: E731
        wait_until("the adjustment log owns up", lambda: any(line["event"] == "gap" and line["lost"] for line in read()), 30)
        numbers = [line["seq"] for line in read()]
        lost = sum(line.get("lost", 0) for line in read() if line["event"] == "gap")
        assert numbers == sorted(set(numbers)) and numbers[-1] - numbers[0] + 1 - len(numbers) <= lost
    none_failed(clients)


def fill_log(proxy, times):
    """Orders, each of which is a line of the adjustment log, with a reason that fills it."""
    for _ in range(times):
        proxy.admin("/api/v1/freeze", why="x" * 400)
        proxy.admin("/api/v1/unfreeze", why="x" * 400)


def test_the_records_directory_goes_away_and_the_record_goes_on(faulty):
    with Proxy(faulty, STILL) as proxy, Clients(proxy.url, count=4) as clients:
        fill_log(proxy, 2)
        subprocess.run(["rm", "-rf", str(proxy.state / "adjustment-log")], check=True)
        fill_log(proxy, 2)
        wait_until("a new adjustment log", lambda: (fill_log(proxy, 1), proxy.records())[1], 30, 1.0)
        wait_until("answers", lambda: clients.served() > 100, 20)
    none_failed(clients)


def test_garbage_in_the_configuration_changes_nothing(faulty):
    with Proxy(faulty, STILL) as proxy, Clients(proxy.url, count=4) as clients:
        wait_until("answers", lambda: clients.served() > 20, 20)
        before, good = proxy.admin("/api/v1/state")["config"], proxy.config.read_text()
        for garbage in (os.urandom(4096), b"", b"listen = 7\n", b"mode = 'enforce'\n" * 2, good.encode() + b"\n[class.views"):
            replace(proxy.config, garbage)
            proxy.session.popen.send_signal(signal.SIGHUP)
            if garbage:  # an empty file is a valid one: all defaults, and those need a restart
                wait_until("it is refused", lambda: proxy.admin("/api/v1/state")["config_problem"], 20)
            assert proxy.admin("/api/v1/state")["config"] == before
            replace(proxy.config, good)
            proxy.session.popen.send_signal(signal.SIGHUP)
            wait_until("it is well again", lambda: not proxy.admin("/api/v1/state")["config_problem"], 20)
    none_failed(clients, 20)


def replace(path, content):
    new = path.with_suffix(".new")
    (new.write_bytes if isinstance(content, bytes) else new.write_text)(content)
    new.rename(path)


def test_a_reload_every_second_for_a_minute_fails_no_request(faulty):
    with Proxy(faulty, STILL) as proxy:
        good = proxy.config.read_text()
        with Clients(proxy.url, count=6) as clients, Clients(proxy.url, "/nodes?view=summary", count=3) as tabs:
            seen = set()
            for turn in range(60):
                replace(proxy.config, good + f"[class.state-heavy]\nin_flight = {{ initial = {2 + turn % 2}, min = 1, max = 4 }}\n")
                proxy.session.popen.send_signal(signal.SIGHUP)
                time.sleep(1.0)
                seen.add(proxy.admin("/api/v1/state")["config"])
        assert len(seen) == 2, "both configurations were in force"
        none_failed(clients, 1000)
        none_failed(tabs, 500)
        whole(proxy)


@pytest.mark.parametrize("jump", ["+1d", "-1d", "+20y"])
def test_the_clock_jumps(faulty, tmp_path, jump):
    library = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
    if library is None:
        assert not os.environ.get("CI"), "libfaketime is missing: apt-get install faketime"
        pytest.skip("libfaketime is not installed")
    dial = tmp_path / "time"
    dial.write_text("+0")
    env = {
        "LD_PRELOAD": str(library), "FAKETIME_TIMESTAMP_FILE": str(dial), "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1", "FAKETIME_DONT_RESET": "1",
    }  # fmt: skip
    with Proxy(faulty, faulty.metrics + STILL, env=env) as proxy, Clients(proxy.url, count=4) as clients:
        proxy.admin("/api/v1/pin", **{"class": "state-heavy", "limit": "in_flight", "value": 3, "for": "1h", "why": "a test"})
        wait_until("a reading", lambda: signal_of(proxy)["health"] == "fresh", 20)
        before = {key: row["value"] for key, row in proxy.limits().items()}
        when = proxy.admin("/api/v1/state")["time"]
        dial.write_text(jump)
        wait_until("the new time", lambda: proxy.admin("/api/v1/state")["time"][:10] != when[:10], 20)
        time.sleep(5.0)
        # Time that counts is the monotonic one: a pin of an hour lasts an hour, a reading stays fresh.
        after = proxy.limits()
        assert after["state-heavy", "in_flight"]["pinned"] and after["state-heavy", "in_flight"]["value"] == 3
        for key, value in before.items():
            assert after[key]["value"] == pytest.approx(value, rel=0.02), (key, value, after[key])
        assert signal_of(proxy)["health"] == "fresh"
        dial.write_text("+0")
        time.sleep(2.0)
        within_bounds(proxy)
        whole(proxy)
    none_failed(clients)


def test_little_memory_is_enough_for_a_crowd_of_half_asked_questions(faulty):
    with Proxy(faulty, STILL) as proxy:
        pass
    proxy.command = ["sh", "-c", 'ulimit -v 1048576 && exec "$@"', "sh", *proxy.command]
    with proxy, Clients(proxy.url, count=4) as clients:
        wait_until("answers", lambda: clients.served() > 20, 20)
        crowd = []
        for number in range(600):
            one = socket.create_connection(("127.0.0.1", proxy.port))
            one.sendall(b"POST /api/jobs/ HTTP/1.1\r\nHost: a\r\nX-Filler: " + b"a" * 50_000)
            if number % 2:
                one.sendall(b"\r\nContent-Length: 1000000\r\n\r\n" + b"b" * 10_000)
            crowd.append(one)
        at = clients.served()
        wait_until("others are served meanwhile", lambda: clients.served() > at + 100, 30)
        assert proxy.status("VmHWM") < 300 * 1024, f"{proxy.status('VmHWM')} KiB"
        for one in crowd:
            one.close()
        wait_until("no place is held", lambda: under_way(proxy) <= 4, 20)
    none_failed(clients)


def test_a_stop_in_the_middle_of_a_flood_finishes_what_was_begun(faulty):
    with Proxy(faulty, STILL) as proxy:
        with Clients(proxy.url, count=16, pause_s=0.0) as clients:
            wait_until("a flood", lambda: clients.served() > 500, 30)
            told = time.monotonic()
            proxy.session.popen.send_signal(signal.SIGTERM)
            assert proxy.session.popen.wait(30) == 0
        begun_before = clients.failed(until=told - 0.05)
        assert not begun_before, begun_before
        assert proxy.records()[-1]["event"] == "stop", proxy.records()[-1]
        whole(proxy)


def test_a_kill_in_the_middle_of_a_flood_keeps_the_record_and_the_limits(faulty):
    with Proxy(faulty, faulty.metrics + STILL) as proxy:
        kept = proxy.state / "limits.json"
        # Each with a token of its own: equal questions of one client would be asked once.
        crowd = [Clients(proxy.url, "/api/v0/tasks", 2, 0.0, headers={"Authorization": f"Bearer {n}"}) for n in range(8)]
        with contextlib.ExitStack() as flood:
            for clients in crowd:
                flood.enter_context(clients)
            wait_until("a limit that has grown, and is kept", lambda: heavy(kept) > 2.5, 60)
            proxy.session.popen.kill()
            proxy.session.popen.wait()
        grown, lines = heavy(kept), len(whole(proxy))
        with proxy:
            began = proxy.records("start")[-1]["limits"]
            warm = next(one for one in began if (one["class"], one["limit"]) == ("state-heavy", "in_flight"))
            assert warm["warm"] and warm["value"] == pytest.approx(grown), warm
            with Clients(proxy.url, count=4) as again:
                wait_until("answers", lambda: again.served() > 50, 20)
            none_failed(again)
            assert len(whole(proxy)) > lines


def heavy(kept):
    """Room for the costliest listings, as it would outlive this run."""
    limits = {(one["class"], one["limit"]): one["value"] for one in json.loads(kept.read_text())}
    return limits["state-heavy", "in_flight"]
