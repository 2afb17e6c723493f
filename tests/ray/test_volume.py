"""What is large passes in constant memory: a package up, ten gigabytes of log down, and a reader who is slow."""

import socket
import threading
import time

import pytest
from proxy import Proxy
from faulty import FaultyHead
from head import wait_until

# Logs pass at 50 MB/s as shipped; here memory is asked about, not bandwidth.
UNBRIDLED = '[class.state-logs]\nbytes_per_second = "off"\n'
PEAK_KIB = 64 * 1024
PACKAGE_MIB = 100
LOG_MIB = 10 * 1000**3 // 2**20


@pytest.fixture
def faulty():
    with FaultyHead() as head:
        yield head


@pytest.fixture
def proxy(faulty):
    with Proxy(faulty, UNBRIDLED) as proxy:
        yield proxy


def connect(proxy, head):
    connection = socket.create_connection(("127.0.0.1", proxy.port), timeout=60)
    connection.sendall(head.encode() + b"\r\nhost: ray\r\nconnection: close\r\n\r\n")
    return connection


def drain(connection):
    """How many bytes came until the end."""
    room, count = memoryview(bytearray(2**20)), 0
    while got := connection.recv_into(room):
        count += got
    return count


def test_ten_gigabytes_of_log_pass_in_constant_memory(proxy):
    log = connect(proxy, f"GET /api/v0/logs/file?mebibytes={LOG_MIB} HTTP/1.1")
    assert drain(log) > LOG_MIB * 2**20
    assert proxy.status("VmHWM") < PEAK_KIB


def test_packages_pass_in_constant_memory(proxy):
    def upload(number, statuses):
        path = f"/api/packages/gcs/_ray_pkg_{number:016x}.zip"
        package = connect(proxy, f"PUT {path} HTTP/1.1\r\ncontent-length: {PACKAGE_MIB * 2**20}")
        mebibyte = b"p" * 2**20
        for _ in range(PACKAGE_MIB):
            package.sendall(mebibyte)
        statuses.append(package.recv(12)[9:12])

    statuses = []
    uploads = [threading.Thread(target=upload, args=(number, statuses)) for number in range(4)]
    for each in uploads:
        each.start()
    for each in uploads:
        each.join(60)
    assert statuses == [b"200"] * 4
    assert proxy.status("VmHWM") < PEAK_KIB


def test_a_reader_who_is_slow_holds_back_the_head_and_fills_no_memory(proxy):
    idle = proxy.status("VmRSS")
    slow = [connect(proxy, "GET /api/v0/logs/file?mebibytes=1000 HTTP/1.1") for _ in range(2)]
    for each in slow:
        assert each.recv(12).endswith(b"200")
    # What no client reads is not taken from the head: memory stands still while the head could send, once the buffers
    # of the two connections are full. These hold a megabyte each at the most.
    time.sleep(0.5)
    before = proxy.status("VmRSS")
    assert before - idle < 2 * 1024
    time.sleep(2.0)
    assert proxy.status("VmRSS") - before < 1024
    assert proxy.status("VmHWM") < PEAK_KIB
    for each in slow:
        each.close()
    wait_until("the proxy's descriptors", lambda: proxy.descriptors() < 64, 20)
