"""One range of bytes over HTTPS, only from hosts that may be asked.

Plain HTTP, and addresses that are not of the public internet, are for hosts that the settings name. The check
is made on the address that is then connected to, and again after each redirect.
"""

import contextlib
import functools
import http.client
import ipaddress
import os
import socket
import ssl
import string
import threading
from collections import deque
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from liverseg_core.config import RemoteConfig
from liverseg_core.errors import LiversegError
from liverseg_core.sources.ranges import (
    Passing,
    Reply,
    absent,
    cut_short,
    dishonest,
    expected_length,
    failing,
    refused,
    whole_size,
)

REDIRECTS = 5
WAIT_CAP_S = 30.0
NAT64 = ipaddress.ip_network("64:ff9b::/96")
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_idle: dict[tuple[object, ...], deque[http.client.HTTPConnection]] = {}
"""Connections between two requests, by process: a forked child must not speak on its parent's."""


def shown(url: str) -> str:
    """The URL without what may be secret: its query, its user and password."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}{'?…' if parts.query else ''}"


def fetch(url: str, offset: int, size: int, options: RemoteConfig) -> Reply:
    """Ask once for a range.

    Raises:
        Passing: For failures worth another try.
        LiversegError: LS204 or LS211 for a location that may not be asked; LS301, LS405, LS406 or LS407.
    """
    location = url
    for _ in range(REDIRECTS + 1):
        found = _request(location, offset, size, options)
        if isinstance(found, Reply):
            return found
        location = urljoin(location, found)
    raise dishonest(shown(url), f"redirects more than {REDIRECTS} times")


def _request(url: str, offset: int, size: int, options: RemoteConfig) -> Reply | str:
    """The reply, or where the server says to ask instead."""
    parts, where = urlsplit(url), shown(url)
    named = _may_ask(parts, options)
    key = (os.getpid(), parts.scheme, parts.netloc, named)
    pool = _idle.setdefault(key, deque(maxlen=4))
    target = quote((parts.path or "/") + (f"?{parts.query}" if parts.query else ""), safe=string.punctuation)
    headers = {"Range": f"bytes={offset}-{offset + size - 1}", "User-Agent": "liverseg"}
    while True:
        used = bool(pool)
        connection = pool.pop() if used else _connect(parts, named, options)
        late = threading.Event()
        # A server that sends a byte now and then never times out: at the deadline the line is cut.
        deadline = threading.Timer(10 * options.timeout_s, _cut, [connection.sock, late])
        deadline.daemon = True
        deadline.start()
        try:
            connection.request("GET", target, headers=headers)
            response = connection.getresponse()
            found = _judge(response, where, offset, size)
        except (http.client.HTTPException, OSError) as error:
            connection.close()
            if used and isinstance(error, ConnectionError):
                continue  # closed by the server since the last request
            raise Passing(failing(where, str(error) or type(error).__name__)) from None
        except BaseException as error:
            connection.close()
            if isinstance(error, Passing) and late.is_set():
                raise Passing(failing(where, "too slow")) from None
            raise
        finally:
            deadline.cancel()
        if isinstance(found, Reply) and response.isclosed() and not response.will_close:
            pool.append(connection)
        else:
            connection.close()
        return found


def _judge(response: http.client.HTTPResponse, where: str, offset: int, size: int) -> Reply | str:
    status = response.status
    version = response.getheader("ETag") or response.getheader("Last-Modified") or ""
    if status == 206:
        encoding = response.getheader("Content-Encoding", "identity")
        if encoding != "identity":
            raise dishonest(where, f"sends the range encoded as {encoding!r}")
        length, total = expected_length(response.getheader("Content-Range"), offset, size, where)
        data = response.read(length)
        if len(data) != length:
            raise cut_short(where, offset, length, len(data))
        if response.read(1):
            raise dishonest(where, "sends more than the range")
        return Reply(data, total, version)
    if status == 416:
        return Reply(b"", whole_size(response.getheader("Content-Range")), version)
    if status in (301, 302, 303, 307, 308) and response.getheader("Location"):
        return str(response.getheader("Location"))
    if status in (404, 410):
        raise absent(where)
    if status in (401, 403, 407):
        raise refused(where, f"status {status}")
    if status == 200:
        raise dishonest(where, "sends the whole file where a range was asked for")
    if status >= 500 or status in (408, 425, 429):
        asked = response.getheader("Retry-After", "")
        raise Passing(
            failing(where, f"status {status}"), min(int(asked), WAIT_CAP_S) if asked.isdigit() else 0
        )
    raise failing(where, f"status {status}")


def _may_ask(parts: SplitResult, options: RemoteConfig) -> bool:
    """Whether the host is allowed by name; it must be for plain HTTP."""
    url = shown(parts.geturl())
    try:
        host, port = (parts.hostname or "").rstrip("."), parts.port
    except ValueError:
        host, port = "", None
    if parts.scheme not in ("http", "https") or not host or not url.isprintable() or " " in url:
        raise LiversegError("LS204", f"cannot read {url!r}", "https://host/path", "Correct the address")
    if "@" in parts.netloc:
        what = f"{url} was given with a user or password in it"
        raise LiversegError("LS204", what, "an address without them", "Use a signed URL, or s3://")
    names = {name.lower().rstrip(".") for name in options.allowed_hosts}
    named = not names.isdisjoint({host.lower(), f"{host.lower()}:{port}"})
    if parts.scheme == "http" and not named:
        raise _forbidden(url, "is not encrypted", host)
    return named


def _connect(parts: SplitResult, named: bool, options: RemoteConfig) -> http.client.HTTPConnection:
    secure = parts.scheme == "https"
    host, port = str(parts.hostname), parts.port or (443 if secure else 80)
    where = shown(parts.geturl())
    try:
        addresses = [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError) as error:
        trouble = failing(where, f"no address for {host!r} ({error})")
        if isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN:
            raise Passing(trouble) from None
        raise trouble from None
    if not named and not all(
        _is_public(ipaddress.ip_address(address.split("%")[0])) for address in addresses
    ):
        raise _forbidden(where, "is not on the public internet", host)
    kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    connection = kind(host, port, timeout=options.timeout_s)
    connection.auto_open = 0  # it would look the name up again, unchecked
    try:
        raw = _first_that_answers(addresses, port, options.timeout_s)
        connection.sock = _trust().wrap_socket(raw, server_hostname=host) if secure else raw
    except ssl.SSLCertVerificationError as error:
        raise failing(where, f"its certificate is not trusted ({error.verify_message})") from None
    except OSError as error:
        raise Passing(failing(where, str(error) or type(error).__name__)) from None
    return connection


@functools.cache
def _trust() -> ssl.SSLContext:
    return ssl.create_default_context()


def _first_that_answers(addresses: list[str], port: int, timeout_s: float) -> socket.socket:
    for address in addresses[:-1]:
        try:
            return socket.create_connection((address, port), timeout_s)
        except OSError:
            continue
    return socket.create_connection((addresses[-1], port), timeout_s)


def _is_public(address: Address) -> bool:
    """Whether the address, or the IPv4 address inside it, is of the public internet."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1]
        if address in NAT64:
            inner = ipaddress.IPv4Address(int(address) % 2**32)
        if inner:
            return _is_public(inner)
    return address.is_global and not address.is_multicast


def _forbidden(where: str, trouble: str, host: str) -> LiversegError:
    remedy = f"Use an https:// address, or allow it by name: --set remote.allowed_hosts={host}"
    return LiversegError(
        "LS211", f"{where} {trouble}", "public https:// addresses, and allowed hosts", remedy
    )


def _cut(line: socket.socket, late: threading.Event) -> None:
    late.set()
    with contextlib.suppress(OSError):
        socket.socket.shutdown(line, socket.SHUT_RDWR)  # of the bare line: TLS would take leave politely
