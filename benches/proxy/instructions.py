#!/usr/bin/env python3
"""How many user instructions does a forwarded request take? Counted by valgrind's callgrind, so that what else
the machine does is of no account.

Each binary serves two runs of different length on 8 kept connections, one worker thread, 1 KiB answers
of an nginx behind it; the difference of the two runs is the requests' own. With several binaries each is
measured in turn. What goes by time (the control loop's ticks) is in the figure of the whole program alone.

    cargo build --profile dist && python3 benches/proxy/instructions.py target/dist/rayguard [OTHER...]

Symbols (`CARGO_PROFILE_DIST_STRIP=none`, or a plain release build) tell the clients' tasks apart, and let
`--functions` name the functions that take the most.
"""

import argparse, os, pathlib, re, shutil, signal, socket, subprocess, tempfile

from cost import BACKEND, BACKEND_CONF, FRONT, RAYGUARD_CONF, SHEDDING, await_port

# Runs once a connection; its callees are all that a request costs, and nothing that goes by time.
CLIENT_TASKS = "rayguard_proxy::listen::converse::{{closure}}"

REQUEST = b"GET /api HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n"


def read_answer(connection):
    """Reads an answer whole; its status."""
    read = b""
    while b"\r\n\r\n" not in read:
        read += connection.recv(65536)
    head, body = read.split(b"\r\n\r\n", 1)
    length = int(re.search(rb"content-length: (\d+)", head, re.IGNORECASE)[1])
    while len(body) < length:
        body += connection.recv(65536)
    return head.split(b" ", 2)[1]


def run(binary, home, requests, shed):
    pathlib.Path(home, "rayguard.toml").write_text(SHEDDING if shed else RAYGUARD_CONF)
    out = pathlib.Path(home, f"callgrind.{requests}")
    command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", str(pathlib.Path(binary).resolve())]
    log = open(pathlib.Path(home, "rayguard.out"), "w")
    environment = {**os.environ, "TOKIO_WORKER_THREADS": "1"}
    process = subprocess.Popen([*command, "run", "--config", "rayguard.toml"], cwd=home, stdout=log, stderr=log, env=environment)
    try:
        for _ in range(60):
            try:
                await_port(FRONT)
                break
            except SystemExit:
                pass
        connections = [socket.create_connection(("127.0.0.1", FRONT)) for _ in range(8)]
        statuses = []
        # All ask, then all are answered: on a busy machine a connection that waited for its turn would fall asleep.
        for _ in range(requests // 8):
            for connection in connections:
                connection.sendall(REQUEST)
            statuses += map(read_answer, connections)
        for connection in connections:
            connection.close()
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(120)
    expected = b"200"
    answered = statuses.count(expected)
    assert shed or answered == requests, f"{answered} of {requests} answered 200"
    assert not shed or answered <= requests * 0.02 + 4, f"{answered} of {requests} got in"
    return functions(out, "no"), functions(out, "yes").get(CLIENT_TASKS)


def functions(out, inclusive):
    """Instructions of each function, itself or with all that it calls."""
    annotate = ["callgrind_annotate", "--threshold=100", f"--inclusive={inclusive}", out]
    found = {}
    for line in subprocess.run(annotate, capture_output=True, text=True).stdout.splitlines():
        match = re.match(r"\s*([\d,]+) \(.*?\)\s+(.+)", line)
        if match and "PROGRAM TOTALS" not in line:
            name = re.sub(r"^\S*?:(?=\S)", "", match[2]).split(" [")[0]
            found[name] = found.get(name, 0) + int(match[1].replace(",", ""))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", nargs="+")
    parser.add_argument("--requests", type=int, nargs=2, default=[800, 3200], metavar=("FEW", "MANY"))
    parser.add_argument("--shed", action="store_true", help="refusals instead of forwarded requests")
    parser.add_argument("--functions", type=int, default=0, metavar="N", help="the N functions that take the most")
    arguments = parser.parse_args()
    assert shutil.which("valgrind") and shutil.which("nginx"), "needs valgrind and nginx"
    few, many = arguments.requests
    with tempfile.TemporaryDirectory() as home:
        pathlib.Path(home, "backend.conf").write_text(BACKEND_CONF)
        backend = subprocess.Popen(["nginx", "-p", home, "-c", "backend.conf"])
        try:
            await_port(BACKEND)
            for binary in arguments.binary:
                (before, less), (after, more) = (run(binary, home, n, arguments.shed) for n in (few, many))
                whole = sum(after.values()) - sum(before.values())
                # A binary without symbols has no name for them.
                tasks = f"{(more - less) / (many - few):,.0f} in the clients' tasks, " if more is not None else ""
                print(f"instructions per request: {tasks}{whole / (many - few):,.0f} in the whole program: {binary}")
                if arguments.functions:
                    grown = sorted(((after[name] - before.get(name, 0)) / (many - few), name) for name in after)
                    for instructions, name in reversed(grown[-arguments.functions:]):
                        print(f"{instructions:12,.1f}  {name[:150]}")
        finally:
            backend.terminate()
            backend.wait()


if __name__ == "__main__":
    main()
