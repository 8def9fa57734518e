"""No test reaches beyond this machine: an audit hook refuses connections and name look-ups other than loopback.

The hook sees every use of Python's `socket`, whatever wraps it and whenever it happens: in tests, fixtures of any scope
and while test modules are imported, and in processes that are forked from this one, such as data workers. A plugin that
replaces `socket.socket.connect` during each test misses look-ups, datagrams and all that happens between tests.

Libraries that open sockets without Python, and Python processes that a test starts anew, are not seen; for these
`tests/conftest.py` sets HF_HUB_OFFLINE, which they inherit.
"""

import ipaddress
import os
import socket
import sys
from typing import Any

LOCAL_NAMES = {"", "localhost", "localhost.localdomain", "ip6-localhost", socket.gethostname()}


class NetworkBlocked(RuntimeError):
    """A test tried to reach another machine. No OSError, which many libraries would take for a bad connection."""


def block_network() -> None:
    """Refuse, in this process and from now on, all but loopback and Unix sockets.

    Raises:
        NetworkBlocked: from then on, wherever another host is connected to, sent to or looked up.
    """
    sys.addaudithook(_refuse)


def is_local(host: Any) -> bool:
    """Whether `host`, a name or an address, is this machine."""
    if isinstance(host, bytes):
        host = host.decode("ascii", "replace")
    if host is None or host in LOCAL_NAMES:
        return True
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        address = arguments[1]
        host = address[0] if isinstance(address, tuple) else None  # else the path of a Unix socket
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        host = arguments[0]
    else:
        return
    if not is_local(host):
        raise NetworkBlocked(f"{event} of {host!r} in process {os.getpid()}: tests may only use this machine")
