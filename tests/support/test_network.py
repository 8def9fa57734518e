"""The guard that keeps tests offline bites; loopback and Unix sockets work."""

import os
import socket
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest

from tests.support.network import NetworkBlocked, is_local

REMOTE = "192.0.2.1"  # RFC 5737: no machine has it


@pytest.mark.parametrize(
    "use",
    [
        lambda: socket.create_connection((REMOTE, 80), 1),
        lambda: socket.create_connection(("2001:db8::1", 80), 1),
        lambda: socket.socket().connect_ex((REMOTE, 80)),
        lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b"x", (REMOTE, 9)),
        lambda: socket.socket(type=socket.SOCK_DGRAM).sendmsg([b"x"], [], 0, (REMOTE, 9)),
        lambda: socket.getaddrinfo("host.test", 80),
        lambda: socket.gethostbyname("host.test"),
        lambda: urllib.request.urlopen(f"http://{REMOTE}/", timeout=1),
        lambda: httpx.get("http://host.test/"),
    ],
)
def test_other_machines_are_refused(use):
    """By every way that Python's sockets have, and by the libraries above them."""
    with pytest.raises(NetworkBlocked, match="tests may only use this machine"):
        use()


def test_forked_processes_are_guarded():
    """Data workers among them."""
    pid = os.fork()
    if pid == 0:
        try:
            socket.create_connection((REMOTE, 80), 1)
        except NetworkBlocked:
            os._exit(3)
        except BaseException:
            os._exit(4)
        os._exit(5)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3


@pytest.fixture(scope="session")
def refused_in_a_session_fixture():
    try:
        socket.create_connection((REMOTE, 80), 1)
    except NetworkBlocked:
        return True
    return False


def test_fixtures_are_guarded(refused_in_a_session_fixture):
    """Those of a session, too, which are made before anything that is done for each test."""
    assert refused_in_a_session_fixture


class Hello(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, *_):
        pass


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_loopback_works(host):
    server = HTTPServer(("127.0.0.1", 0), Hello)
    threading.Thread(target=server.handle_request, daemon=True).start()
    with urllib.request.urlopen(f"http://{host}:{server.server_port}/", timeout=10) as answer:
        assert answer.read() == b"hello"
    server.server_close()


def test_unix_sockets_work(tmp_path):
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "s"))
    server.listen()
    socket.socket(socket.AF_UNIX).connect(str(tmp_path / "s"))


def test_is_local():
    assert all(is_local(h) for h in (None, "", "127.0.0.1", "127.9.9.9", b"localhost", "::1", "::1%lo", "0.0.0.0"))
    assert not any(
        is_local(h) for h in ("10.0.0.1", "169.254.169.254", "huggingface.co", "127.0.0.1.host.test", "fe80::1")
    )
