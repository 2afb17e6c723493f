"""Other versions of Ray: their routes, read from their sources, and their signals, read off a head of theirs; what
their commands, Ray Client and Serve say through the proxy; and who is served when their heads are flooded.

One old version in every run, all of them in a nightly one (RAYGUARD_NIGHTLY=1). And the newest that there is, to hear
of routes, keys of queries, signals, commands and calls that nothing here knows: RAYGUARD_NEWEST=pypi installs it, or
names the directory of its commands.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import versions
from faulty import FaultyHead
from handlers import Handlers
from head import Head, free_ports, wait_until
from proxy import RAYGUARD, ROOT, Load, Proxy, ask

sys.path.append(str(ROOT / "benches" / "protection"))
from history import History  # noqa: E402

NIGHTLY = bool(os.environ.get("RAYGUARD_NIGHTLY"))
VERSIONS = list(versions.WANTED) if NIGHTLY else ["2.44.1"]
NEWEST = os.environ.get("RAYGUARD_NEWEST", "")


def nameless(pattern):
    return re.sub(r"\{[^}]*\}", "{}", pattern)


def routes_of(handlers):
    return {(method, nameless(path)) for method, path in handlers.routes}


def catalogue():
    """The routes of rayguard's catalogue."""
    source = (ROOT / "src/core/request/catalogue.rs").read_text()
    found = re.findall(r'\broute\(\s*"(\w+)",\s*"([^"]+)"', source)
    return {(method, nameless(path)) for method, path in found}


@pytest.mark.parametrize("version", VERSIONS)
def test_every_route_of_its_own_is_classified(version):
    routes = routes_of(Handlers(versions.package(versions.install(version))))
    assert len(routes) >= 40, f"few routes are found: {sorted(routes)}"
    assert not routes - catalogue()


def doctor(head, metrics=""):
    """What `rayguard doctor` finds, by subject; nothing is configured but the upstream, and what is said of metrics."""
    config = head.directory / "rayguard.toml"
    config.write_text(
        f'upstream = "{head.url}"\nstate_dir = "{head.directory}/state"\nlisten = "127.0.0.1:0"\n[admin]\nlisten = "off"\n{metrics}'
    )
    command = [RAYGUARD, "doctor", "--config", str(config), "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    return {each["subject"]: each for each in json.loads(done.stdout)["findings"]}


def missing(findings):
    """Signals that move a limit and have no reading, each with a warning of its own or, where there is no page, in one."""
    mute = {
        name.removeprefix("signal ")
        for name, each in findings.items()
        if name.startswith("signal ") and each["health"] != "ok" and "(target" not in each["found"]
    }
    return mute | set(findings["signals"]["found"].rpartition(": ")[2].split(", ") if "signals" in findings else [])


def settled(head):
    """The findings once a head has told of all that it tells: the GCS reports each 10 s."""
    for _ in range(6):
        findings = doctor(head)
        if not missing(findings):
            break
    return findings


@pytest.mark.parametrize("version", VERSIONS)
def test_every_signal_that_moves_a_limit_is_found_on_a_head_in_a_directory_of_its_own(version):
    with Head(bin=versions.install(version), quick_metrics=False) as head:
        findings = settled(head)
        # Without the page of the node, what it tells is missed.
        without = missing(doctor(head, f'[metrics]\ntargets = ["{head.metrics_targets[2]}"]\n'))
    assert {"pending_tasks", "head_memory"} <= without
    assert findings["ray"]["found"].startswith(version)
    assert f"profile {version.rsplit('.', 1)[0]} (made for it)" in findings["ray profile"]["found"]
    assert not missing(findings), findings
    moving = {"gcs_latency", "head_cpu", "head_memory", "pending_tasks", "submission_backlog"}
    assert moving <= {name.removeprefix("signal ") for name in findings}, findings


# -- a head that is replaced by another

# Each is begun with the first, which is then replaced by the second.
REPLACED = [("2.44.1", "2.60.0"), ("2.60.0", "2.9.3")] if NIGHTLY else []
# Where each module of the dashboard has a process of its own.
PROCESSES = {"2.53.0", "2.60.0"}


def fresh(proxy):
    return {row["name"] for row in proxy.admin("/api/v1/signals") if row["health"] == "fresh"}


def is_taken_for(proxy, version):
    """Whether this is the version that the head is taken for, and the module of a list of tasks is that version's."""
    ray = proxy.admin("/api/v1/state")["ray"]
    module = proxy.limits()["state-heavy", "in_flight"]["module"]
    return (ray["version"], ray["profile"], module) == (version, version.rpartition(".")[0], "StateHead" if version in PROCESSES else "Dashboard")


def test_a_head_that_becomes_another_without_a_gap_is_found_out():
    with FaultyHead() as head, Proxy(head, head.metrics) as proxy:
        for version in ("2.60.0", "2.9.3", "2.53.0"):
            head.be(version)
            wait_until(f"{version} is known", lambda: is_taken_for(proxy, version), 30, 0.5)


@pytest.mark.parametrize(("before", "after"), REPLACED)
def test_a_head_that_another_version_replaces_at_its_address_is_found_out_and_read(before, after):
    def is_known(version):
        return is_taken_for(proxy, version) and ("state_head_cpu" in fresh(proxy)) == (version in PROCESSES)

    # The list of exporters lies in a directory of the head's own, which is named by its process alone.
    with Head(bin=versions.install(before)) as first, Proxy(first, "[metrics]\n") as proxy:
        wait_until("the first is known", lambda: is_known(before), 120, 1)
        first.kill()
        with Head(bin=versions.install(after), ports=first.ports):
            wait_until("the second is known", lambda: is_known(after), 120, 1)
            wait_until("the second is read", lambda: {"head_cpu", "head_memory", "pending_tasks"} <= fresh(proxy), 120, 1)
            changes = [change for each in proxy.records("config_change") for change in each["changes"]]
            assert any(f"profile {after.rpartition('.')[0]} (made for it)" in each for each in changes), changes
            assert ask(proxy.url, path="/api/version", headers=HEADERS).json()["ray_version"] == after


# -- a head of each version, with a past

HEADERS = {"User-Agent": "python-requests/2.34.2"}  # versions before 2.53 answer no client that names no software


# Of a machine that does much else beside.
PATIENCE = {"RAY_memory_monitor_refresh_ms": "0", "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60"}


# What Serve is to serve.
APPLICATION = """
from ray import serve
from ray.serve.generated import serve_pb2

@serve.deployment(ray_actor_options={"num_cpus": 0.1})
class Application:
    async def __call__(self, request):
        if hasattr(request, "query_params"):
            return {"said": request.query_params["word"], "bytes": len(await request.body())}
        return serve_pb2.UserDefinedResponse(greeting=f"hello {request.name}", num_x2=request.num * 2)

application = Application.bind()
"""


@pytest.fixture(scope="module", params=VERSIONS)
def old(request):
    """A head with a thousand tasks and 119 jobs behind it, and an application that it can import."""
    head = Head(bin=versions.install(request.param), env=PATIENCE)
    applications = head.directory / "applications"
    applications.mkdir()
    (applications / "application.py").write_text(APPLICATION)
    head.env["PYTHONPATH"] = str(applications)
    with head:
        head.job = History(head).make(119, set())["job"]
        yield head


def get(head, path):
    return ask(head.url, path=path, headers=HEADERS).json()["data"]["result"]["result"]


@pytest.fixture
def commands(old, tmp_path):
    """What Ray's own commands and SDK say when they are run against an address."""
    (tmp_path / "main.py").write_text("print('carried')\n")
    ask(old.url, path="/api/serve/applications/", headers=HEADERS)  # for which the dashboard becomes a driver, once
    node = get(old, "/api/v0/nodes")[0]
    # One that has a log, as drivers have not.
    worker = max((each for each in get(old, "/api/v0/workers") if each["worker_type"] == "WORKER"), key=lambda each: each["is_alive"])
    ids = {
        "job": old.job,
        "gcs": f"{node['node_ip']}:{old.ports['gcs']}",
        "actor": get(old, "/api/v0/actors")[0]["actor_id"],
        "node": node["node_id"],
        "task": get(old, "/api/v0/tasks?limit=1")[0]["task_id"],
        "worker": worker["worker_id"],
        "pid": str(worker["pid"]),
        "directory": str(tmp_path),
    }

    def run(kind, address, **more):
        new = f"raysubmit_{os.urandom(4).hex()}"
        words = json.dumps({**ids, "new": new, **more})
        command = [str(old.bin / "python"), str(Path(__file__).with_name("commands.py")), kind, address, words]
        done = subprocess.run(command, env=old.env, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1].replace(new, "raysubmit_anew"))

    return run


# Commands that ask no dashboard: those of the cluster launcher, which goes by SSH, ...
LAUNCHER = "attach cluster-dump create_or_update dashboard down exec exec_cmd get-head-ip get-worker-ips get_head_ip kill-random-node"
LAUNCHER += " local-dump monitor rsync-down rsync-up rsync_down rsync_up submit teardown up"
# ... drivers and what asks the GCS, ...
DRIVERS = "debug drain-node global-gc health-check kill-actor kuberay-autoscaler memory status symmetric-run timeline"
# ... and what stays on its host.
LOCAL = "check-open-ports cpp disable-usage-stats enable-usage-stats get-auth-token install-nightly microbenchmark sanity-check stack start stop"
PAST_THE_DASHBOARD = {f"ray {name}" for name in " ".join((LAUNCHER, DRIVERS, LOCAL)).split()}
PAST_THE_DASHBOARD |= {f"ray metrics {what}-prometheus" for what in ("launch", "shutdown")}
PAST_THE_DASHBOARD |= {f"serve {name}" for name in ("build", "controller-health", "run", "start")}
# Calls of the SDK that are compared.
JOBS = "delete_job get_address get_job_info get_job_logs get_job_status get_version list_jobs stop_job submit_job tail_job_logs"
SERVES = "delete_applications deploy_applications get_address get_serve_details get_version"
STATE = (
    "get_actor get_job get_log get_node get_objects get_placement_group get_task get_worker list_actors list_cluster_events list_jobs list_logs"
    " list_nodes list_objects list_placement_groups list_runtime_envs list_tasks list_workers summarize_actors summarize_objects summarize_tasks"
)
CALLS = {
    f"{of}.{name}"
    for of, names in (("JobSubmissionClient", JOBS), ("ServeSubmissionClient", SERVES), ("state", STATE))
    for name in names.split()
}


def uncompared(bin):
    """The commands and calls of a Ray that are neither compared here nor known to pass the dashboard by."""
    ids = json.dumps(dict.fromkeys(("job", "gcs", "actor", "node", "task", "worker", "pid", "directory", "new"), ""))
    command = [str(bin / "python"), str(Path(__file__).with_name("commands.py")), "names", "", ids]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    names = json.loads(done.stdout.splitlines()[-1])
    assert len(names["commands"]) > 40 and len(names["calls"]) > 30, names
    return sorted(set(names["not asked"]) - PAST_THE_DASHBOARD) + sorted(set(names["calls"]) - CALLS)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_command_and_call_that_it_has_is_compared_or_asks_no_dashboard(version):
    assert not uncompared(versions.install(version))


# Said as often as a job is looked at until it has begun or ended.
POLLED = re.compile(r"has not exited|Status (for|message)")
# Times, colours, the line of Ray's own code, and of a node or an application what is of that time.
MOMENT = re.compile(
    r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d([,.]\d+)?|\x1b\[[0-9;]*m|(INFO|WARN|SUCC) \w+\.py:\d+ -- |((?<=state_message: )|(?<=last_deployed_time_s: )).*"
)


def of_no_moment(said, addresses):
    """What is said but for the address that is asked, and what is of the time at which it is said."""
    text = json.dumps(said)
    for address in addresses:
        text = text.replace(address, "ADDRESS").replace(address.removeprefix("http://"), "ADDRESS")
    return {name: steady(name, each) for name, each in json.loads(text).items()}


def steady(name, each):
    if isinstance(each, list):
        return [steady(name, inner) for inner in each]
    if not isinstance(each, str):
        return each
    lines = [MOMENT.sub("", line).rstrip() for line in each.splitlines() if not POLLED.search(line)]
    # What a node has, and its logs, stand in an order of the moment.
    return sorted(lines) if re.search("nodes|logs cluster|list_logs", name) else lines


def test_a_row_of_what_has_not_ended_is_compared_like_any_other():
    one, other = ({"list tasks": [0, f"0  {task}  square  RUNNING\n", "None"]} for task in ("1a", "2b"))
    assert of_no_moment(one, ()) != of_no_moment(other, ())


@pytest.mark.parametrize("kind", ["reads", "writes"])
def test_every_command_says_what_it_says_without_the_proxy(old, commands, kind):
    with Proxy(old) as proxy, ThreadPoolExecutor(2) as pool:
        both = (old.url, proxy.url)
        for _ in range(3):  # the head may change between the two
            direct, through = pool.map(lambda url: of_no_moment(commands(kind, url), both), both)
            differ = {name: (said, through[name]) for name, said in direct.items() if said != through[name]}
            if not differ:
                break
    assert not differ, json.dumps(differ, indent=1)
    failed = {name: said for name, said in direct.items() if isinstance(said, list) and said[:1] not in ([], [0]) and isinstance(said[0], int)}
    assert all("no_such" in name or "absent" in name for name in failed), json.dumps(failed, indent=1)
    assert len(direct) >= {"reads": 60, "writes": 9}[kind]
    assert kind == "reads" or "carried" in json.dumps(direct)


CLIENT = """
import ray, sys
ray.init(sys.argv[1])
@ray.remote(num_cpus=0.1)
def square(x):
    return x * x
@ray.remote(num_cpus=0.1)
class Counter:
    count = 0
    def next(self):
        self.count += 1
        return self.count
counter, kept = Counter.remote(), ray.put(bytes(1_000_000))
print("before", sum(ray.get([square.remote(i) for i in range(5)])), ray.get(counter.next.remote()), flush=True)
sys.stdin.readline()
print("after", ray.get(square.remote(6)), ray.get(counter.next.remote()), len(ray.get(kept)), flush=True)
"""
# Ray's proxier loses the process of a session now and then, with and without a proxy between (test_client.py).
RAYS_OWN = ("Starting Ray client server failed", "psutil.ZombieProcess")


def test_a_ray_client_session_works_and_outlives_the_proxy(old, tmp_path):
    script = tmp_path / "client.py"
    script.write_text(CLIENT)
    proxy = Proxy(old, ray_client=True)
    command = [str(old.bin / "python"), str(script), f"ray://127.0.0.1:{proxy.client_port}"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    for _ in range(4):
        with proxy:
            session = subprocess.Popen(command, env=old.env, text=True, **pipes)
            lines = []
            for line in session.stdout:
                lines.append(line)
                if line.startswith("before"):
                    break
        # The proxy is gone, and comes back: the session goes on where it was.
        with proxy:
            said = "".join(lines) + (session.communicate("\n", timeout=150)[0] if session.poll() is None else "")
        session.wait()
        if not any(sentence in said for sentence in RAYS_OWN):
            break
    assert "before 30 1" in said and "after 36 2 1000000" in said, said


# What `serve deploy` is given.
SERVE = """
proxy_location: HeadOnly
http_options: {{host: 127.0.0.1, port: {http}}}
grpc_options: {{port: {grpc}, grpc_servicer_functions: [{servicer}]}}
applications: [{{name: app, route_prefix: /app, import_path: "application:application"}}]
"""
SERVICER = "ray.serve.generated.serve_pb2_grpc.add_UserDefinedServiceServicer_to_server"
CALL = """
import grpc, sys
from ray.serve.generated import serve_pb2, serve_pb2_grpc
stub = serve_pb2_grpc.UserDefinedServiceStub(grpc.insecure_channel(f"127.0.0.1:{sys.argv[1]}"))
message = serve_pb2.UserDefinedMessage(name="there", num=21, foo="bar")
print(stub.__dict__["__call__"](message, metadata=(("application", "app"),), timeout=30))
"""


def test_serve_is_deployed_answers_and_is_shut_down_as_without_the_proxy(old, commands, tmp_path):
    http, grpc, through_http, through_grpc = free_ports(4)
    config = tmp_path / "serve.yaml"
    config.write_text(SERVE.format(http=http, grpc=grpc, servicer=SERVICER))
    listeners = "".join(
        f'[[listen]]\naddress = "127.0.0.1:{port}"\nkind = "serve"\nupstream = "http://127.0.0.1:{upstream}"\n'
        for port, upstream in ((through_http, http), (through_grpc, grpc))
    )
    with Proxy(old, listeners) as proxy:
        both = (old.url, proxy.url)
        direct = commands("deploy", old.url, application=str(config)) | commands("shutdown", old.url)
        deployed = commands("deploy", proxy.url, application=str(config))
        for method, path, body in (("GET", "/app?word=a", None), ("POST", "/app?word=b", bytes(100_000)), ("GET", "/none", None)):
            answers = [ask(f"http://127.0.0.1:{port}", method, path, HEADERS, body) for port in (http, through_http)]
            assert (answers[1].status, answers[1].body) == (answers[0].status, answers[0].body), path
        calls = [old.run("python", "-c", CALL, str(port)) for port in (grpc, through_grpc)]
        assert calls[1] == calls[0] and "hello there" in calls[1] and "42" in calls[1]
        through = deployed | commands("shutdown", proxy.url)
    assert of_no_moment(through, both) == of_no_moment(direct, both)
    assert "Sent deploy request" in json.dumps(direct) and "Sent shutdown request" in json.dumps(direct)


FLOOD_S, CALM_S = (60, 30) if NIGHTLY else (25, 12)

# What a small team asks of its head all day.
POLITE = """
[[stream]]
name = "job status"
rate = 3
addresses = 2
first_address = "127.0.1.1"
timeout_s = 2
connection = "new"
headers = [["user-agent", "python-requests/2.34.2"]]
request = [{ path = "/api/jobs/JOB" }]

[[stream]]
name = "ray list actors"
rate = 1
first_address = "127.0.1.9"
timeout_s = 10
connection = "new"
headers = [["user-agent", "python-requests/2.34.2"]]
request = [{ path = "/api/v0/actors?limit=100&timeout=24&detail=False&exclude_driver=True&server_timeout_multiplier=0.8" }]

[[stream]]
name = "version"
rate = 2
first_address = "127.0.1.20"
timeout_s = 5
connection = "new"
headers = [["user-agent", "python-requests/2.34.2"]]
request = [{ path = "/api/version" }]
"""


def flood(name, paths, at, **more):
    lines = {"timeout_s": 30, **more}
    requests = ", ".join(f'{{ path = "{path}" }}' for path in paths)
    return (
        f'[[stream]]\nname = "flood {name}"\nfirst_address = "127.0.2.{at}"\nrequest = [{requests}]\n'
        'headers = [["user-agent", "python-requests/2.34.2"], ["x-nonce", "{n}"]]\n'
        + "".join(f"{key} = {json.dumps(value)}\n" for key, value in lines.items())
    )


def tasks(**when):
    """No list is another's equal in what Ray reads."""
    return flood("tasks", ["/api/v0/tasks?limit=100&timeout=1{n}&detail=False"], 1, rate=20, connection="new", **when)


def others(**when):
    """Three more floods on three modules. Those whose answers are shared rest between two requests, as clients on machines
    of their own would have to: here they would take the head's processors."""
    pages = {"workers": 32, "think_s": 0.05, **when}
    return (
        flood("jobs", ["/api/jobs/"], 2, **pages)
        + flood("nodes", ["/nodes?view=summary", "/logical/actors"], 3, **pages)
        + flood("actors", ["/api/v0/actors?limit=1{n}", "/api/v0/objects?limit=1{n}"], 4, workers=16, **when)
    )


FLOODS = {"tasks": lambda **when: "", "mixed": others}


def took(url):
    """How long one list of tasks takes, in ms."""
    begin = time.monotonic()
    assert ask(url, path="/api/v0/tasks?limit=100", headers=HEADERS).status == 200
    return (time.monotonic() - begin) * 1000


def of_one_list(head, proxy, beside):
    """How long a list of tasks takes at the head while everybody else of the flood is about, in ms: the median of five."""
    load = Load(proxy.url, "duration_s = 10\n" + beside) if beside else None
    time.sleep(3 if load else 0)
    lists = statistics.median(took(head.url) for _ in range(5))
    if load:
        load.report()
    return lists


@pytest.mark.parametrize("kind", FLOODS)
def test_a_flood_is_not_noticed_by_the_polite(old, kind):
    end = CALM_S + FLOOD_S
    when = {"from_s": CALM_S, "until_s": end}
    plan = f"""duration_s = {end}
window = [{{ name = "calm", from_s = 0, until_s = {CALM_S} }}, {{ name = "flood", from_s = {CALM_S}, until_s = {end} }}]
"""
    with Proxy(old) as proxy:
        one_list = of_one_list(old, proxy, FLOODS[kind](from_s=0, until_s=10))
    with Proxy(old) as proxy:
        time.sleep(3)  # it has found out which Ray it is
        report = Load(proxy.url, plan + POLITE.replace("JOB", old.job) + tasks(**when) + FLOODS[kind](**when)).report()
    windows = {each["name"]: each["streams"] for each in report["windows"]}
    calm, now = windows["calm"], windows["flood"]
    answered = sum(each["in_time"] for name, each in now.items() if name.startswith("flood"))
    polite = ["job status", "ray list actors", "version"]
    for name in polite:
        print(f"{kind}, {name}: p50 {now[name]['p50_ms']:.0f}, p99 {now[name]['p99_ms']:.0f} (calm {calm[name]['p99_ms']:.0f}), {now[name]['fates']}")
    assert answered > 20, "a flood that is kept out altogether"
    shed = [name for name in polite for fate in ("429", "503") if now[name]["fates"].get(fate)]
    assert not shed, now
    late = sum(now[name]["due"] - now[name]["in_time"] for name in polite)
    due = sum(now[name]["due"] for name in polite)
    # Of 150 requests one may meet a stall of the machine.
    assert late <= max(0.005 * due, 1), {name: now[name] for name in polite}
    for name in polite:
        # Of some tens of requests the slowest hundredth is the worst, and that is the machine's.
        quantile = "p99_ms" if NIGHTLY else "p50_ms"
        # Where all modules share a loop, two lists of tasks may be before one: that which it is let in behind cannot be
        # broken off, and the other has the turn before.
        assert now[name][quantile] <= max(2 * calm[name][quantile], 250) + 2 * one_list, (name, one_list, now[name], calm[name])


@pytest.fixture(scope="module")
def newest():
    return versions.newest() if NEWEST == "pypi" else Path(NEWEST)


@pytest.mark.skipif(not NEWEST, reason="RAYGUARD_NEWEST is not set")
def test_every_route_of_the_newest_is_classified(newest):
    unknown = routes_of(Handlers(versions.package(newest))) - catalogue()
    assert not unknown, f"routes that no profile knows: {sorted(unknown)}"


@pytest.mark.skipif(not NEWEST, reason="RAYGUARD_NEWEST is not set")
def test_every_key_that_a_handler_of_the_newest_reads_is_known(newest):
    unlisted = Handlers(versions.package(newest)).unlisted()
    assert not unlisted, f"read of a query by the newest Ray, and called ignored: {unlisted}"


@pytest.mark.skipif(not NEWEST, reason="RAYGUARD_NEWEST is not set")
def test_every_command_and_call_of_the_newest_is_compared_or_asks_no_dashboard(newest):
    new = uncompared(newest)
    assert not new, f"commands and calls that no test compares: {new}"


# Processes of a node that serve no API.
NOT_THE_API = {"raylet", "agent", "workers"}


@pytest.mark.skipif(not NEWEST, reason="RAYGUARD_NEWEST is not set")
def test_every_signal_of_the_newest_is_known_and_found(newest):
    known = set(re.findall(r'"((?:dashboard|gcs)\w*)"', (ROOT / "src/core/signal/catalogue.rs").read_text())) | NOT_THE_API
    with Head(bin=newest) as head:
        findings = settled(head)
        pages = [urllib.request.urlopen(f"http://{target}/metrics", timeout=10).read().decode() for target in head.metrics_targets]
    components = set(re.findall(r'^ray_component_cpu_percentage{.*Component="([^"]*)"', "".join(pages), re.M))
    components = {name for name in components if not name.startswith("ray::")}
    assert components >= {"dashboard"}
    assert not components - known, f"processes that no signal knows: {sorted(components - known)}"
    unread = [findings.get(name, {"found": ": "})["found"].rpartition(": ")[2] for name in ("other signals", "signals of other versions")]
    lost = missing(findings) | {name for names in unread for name in names.split(", ")} - {""}
    # Those wait for something that an idle head has not done yet, or that Ray does only where it is configured.
    assert not lost - {"dashboard_slow_share", "gcs_slow_share", "gcs_very_slow_share", "task_events_head_cpu"}, f"signals that are not found: {sorted(lost)}"
