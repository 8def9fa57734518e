"""The uvicorn server of the voting page."""

import socket
from collections.abc import Iterable

import uvicorn
from starlette.applications import Starlette

from evaluation.errors import EvaluationError

LOOPBACK = ("127.0.0.1", "localhost", "[::1]", "::1")
WILDCARDS = ("0.0.0.0", "::")


def choose_hosts(host: str, more: Iterable[str] = ()) -> list[str]:
    """Host names that the server accepts: loopback, `host`, `more`, and for a wildcard the names of this machine."""
    hosts = [*LOOPBACK, *more]
    if host in WILDCARDS:
        hosts += [socket.gethostname(), socket.getfqdn(), own_address()]
    else:
        hosts += [host, f"[{host}]"] if ":" in host else [host]
    return list(dict.fromkeys(name.lower() for name in hosts))


def own_address() -> str:
    """The address of this machine in its network, or loopback if it has none. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # an address for documentation; this only selects the route
            return probe.getsockname()[0]
        except OSError:
            return LOOPBACK[0]


class StudyServer:
    """A server that listens from its creation on, and responds while `run` is running.

    Args:
        app: see `app.make_app`.
        host: address to listen on.
        port: 0 takes a free one.

    Raises:
        EvaluationError: the server cannot listen on the address or port.
    """

    def __init__(self, app: Starlette, host: str, port: int):
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._socket = socket.create_server((host, port), family=family)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise EvaluationError(f"--host {host} --port {port}: {reason}; try --port 0.") from error
        self.host, self.port = host, self._socket.getsockname()[1]
        # No access log, for the privacy of the voters.
        config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False, lifespan="off")
        self._server = uvicorn.Server(config)

    @property
    def url(self) -> str:
        """URL of the page."""
        host = own_address() if self.host in WILDCARDS else self.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}/"

    def run(self) -> None:
        """Respond to requests until interrupted or stopped."""
        self._server.run(sockets=[self._socket])

    def stop(self) -> None:
        """Make `run` return soon; called from another thread."""
        self._server.should_exit = True
