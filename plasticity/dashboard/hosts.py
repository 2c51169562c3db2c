"""The names under which a server answers.

A browser sends the name under which it reached a page. Without this check a foreign web page could point a name of its
own at this machine and read every run through it (DNS rebinding), which TensorBoard itself does not prevent.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterable
from typing import Any

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
EVERYWHERE = frozenset({"0.0.0.0", "::", ""})
"""Addresses that stand for all of this machine's."""
Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def is_served(name: str, host: str) -> bool:
    """Return whether a server on ``host`` answers to ``name``, the header ``Host`` of a request.

    It does to loopback names and ``host`` itself, and where it listens on all addresses to any address, which no
    foreign name can be, and to the names of this machine.
    """
    asked = _without_port(name)
    if asked in LOOPBACK | {host.lower()}:
        return True
    return host in EVERYWHERE and (
        _is_address(asked) or asked in {socket.gethostname().lower(), socket.getfqdn().lower()}
    )


def reached_as(host: str) -> str:
    """Return a name under which this machine reaches a server on ``host``: of all addresses the loopback one."""
    return ("::1" if host == "::" else "127.0.0.1") if host in EVERYWHERE else host


def in_address(host: str) -> str:
    """Return a host as it stands in a web address: brackets around IPv6."""
    return f"[{host}]" if ":" in host else host


def guarded(application: Application, host: str) -> Application:
    """Return an application that refuses requests under other names than those of ``host``."""

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        name = environ.get("HTTP_HOST", "")
        if is_served(name, host):
            return application(environ, start_response)
        start_response("403 Forbidden", [("Content-Type", "text/plain; charset=utf-8")])
        more = {"any address and the name of this machine"} if host in EVERYWHERE else {host}
        said = f"This page answers to {', '.join(sorted(LOOPBACK | more))} only, not to {name[:100]!r}. "
        return [f"{said}Start it with --host NAME to reach it under another name.\n".encode()]

    return answer


def _without_port(name: str) -> str:
    """Return the host of ``host``, ``host:port``, ``[address]:port``, in lower case."""
    name = name.strip().lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.rpartition(":")[0] if name.count(":") == 1 else name


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
