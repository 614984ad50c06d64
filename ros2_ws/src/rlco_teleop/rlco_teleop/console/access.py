"""Who may open the console. On this machine's own address anybody on it; on any other address whoever has the token.

A page of another site must not be able to reach the console through the operator's browser: requests that act need the
console's own Origin, and the Host has to be an address or a name of this machine, so that no foreign name can be pointed
at it.
"""

import hmac
import ipaddress
import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

COOKIE = "rlco_console"
TOKEN_BYTES = 24
ACTING_METHODS = ("POST",)


@dataclass(frozen=True)
class Access:
    """The rules for one bound address. token: None where none is required."""

    token: str | None
    names: frozenset[str]       # host names of this machine, lower case

    @classmethod
    def on(cls, host: str, token: str = "") -> "Access":
        """Rules for a console bound to `host`: a token, made up if none is given, unless only this machine can reach it."""
        if is_loopback(host) and not token:
            return cls(None, frozenset({"localhost"}))
        name = socket.gethostname().lower()
        return cls(token or secrets.token_urlsafe(TOKEN_BYTES), frozenset({"localhost", host.lower(), name, f"{name}.local"}))

    def refusal(self, method: str, upgrade: bool, headers: Mapping[str, str], given: str | None) -> str | None:
        """Why a request is not answered, else None. upgrade: it opens a websocket. given: its cookie, or token in the URL."""
        host = headers.get("Host", "")
        if not self._is_ours(host):
            return f"'{host}' is not a name of this machine; open the console by its address"
        origin = headers.get("Origin")
        acts = upgrade or method in ACTING_METHODS
        if (acts and origin is None) or (origin is not None and urlsplit(origin).netloc.lower() != host.lower()):
            return "the request comes from a page of another site"
        if self.token is not None and not hmac.compare_digest((given or "").encode(), self.token.encode()):
            return "a token is needed; open the address that the console printed"
        return None

    def _is_ours(self, host: str) -> bool:
        name = (urlsplit(f"//{host}").hostname or "").lower()
        if name in self.names:
            return True
        return is_loopback(name) if self.token is None else _is_address(name)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host.lower() == "localhost":
        return True
    return _is_address(host) and ipaddress.ip_address(host).is_loopback


def addresses(host: str) -> list[str]:
    """Names to open a console with that is bound to `host`; for "any address" those of this machine."""
    if host not in ("", "0.0.0.0", "::"):
        return [f"[{host}]" if ":" in host else host]
    found = [socket.gethostname()]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))     # nothing is sent; this only asks which address a route would use
            found.insert(0, probe.getsockname()[0])
        except OSError:
            return found
    return found


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
