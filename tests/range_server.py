"""Files behind HTTP that are served by ranges, and everything that can go wrong with that."""

import itertools
import os
import re
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest


@dataclass
class RangeServer:
    """Files behind HTTP that are served by ranges, unless a fault is due.

    `once` are the faults of the next requests, one each; `always` is that of every other one.
    """

    url: str
    files: dict[str, bytes] = field(default_factory=dict)
    etag: str = '"1"'
    once: list[str] = field(default_factory=list)
    always: str = ""
    requests: list[tuple[int, int]] = field(default_factory=list)
    """First and last byte of every range asked for."""


class _RangeHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    served: RangeServer
    disable_nagle_algorithm = True

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        served = self.served
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"])
        assert asked, self.headers["Range"]
        first, last = int(asked[1]), int(asked[2])
        served.requests.append((first, last))
        fault = served.once.pop(0) if served.once else served.always
        data = served.files.get(self.path.partition("?")[0])
        if data is None:
            return self.send_error(404)
        if first >= len(data):
            return self._send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
        last = min(last, len(data) - 1)
        return self._with(fault, data, first, last)

    def _with(self, fault: str, data: bytes, first: int, last: int) -> None:
        body = data[first : last + 1]
        headers = {"Content-Range": f"bytes {first}-{last}/{len(data)}", "ETag": self.served.etag}
        changed = {
            "shifted": {"Content-Range": f"bytes {first + 1}-{last + 1}/{len(data)}"},
            "other size": {"Content-Range": f"bytes {first}-{last}/{len(data) + 512}"},
            "other version": {"ETag": '"2"'},
            "encoded": {"Content-Encoding": "gzip"},
        }
        dropped = {"no range": "Content-Range", "no version": "ETag"}.get(fault)
        headers = {name: text for name, text in (headers | changed.get(fault, {})).items() if name != dropped}
        if fault.isdigit():
            self._send(int(fault), b"no", {"Retry-After": "0"})
        elif fault.startswith("to "):
            self._send(302, b"", {"Location": fault[3:]})
        elif fault == "expired":
            self._send(400, b"<Error><Code>ExpiredToken</Code><Message>m</Message></Error>")
        elif fault == "whole":
            self._send(200, data)
        elif fault == "short":
            self._send(206, body[: len(body) // 2], headers, len(body))
        elif fault in ("silent", "slow", "reset", "noise", "endless header"):
            self._fail(fault, headers, body)
        else:
            self._send(206, body + b"more" if fault == "longer" else body, headers)

    def _fail(self, fault: str, headers: dict[str, str], body: bytes) -> None:
        self.close_connection = True
        if fault == "silent":
            time.sleep(3)
        elif fault == "slow":
            self._trickle(headers, body)
        elif fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            raise ConnectionResetError
        elif fault == "noise":
            self.wfile.write(os.urandom(2000))
        else:
            self.wfile.write(b"HTTP/1.1 206 OK\r\n" + b"X: y\r\n" * 1000)

    def _send(
        self, status: int, body: bytes, headers: dict[str, str] | None = None, claimed: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if claimed is None else claimed))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = claimed is not None

    def _trickle(self, headers: dict[str, str], body: bytes) -> None:
        """A byte now and then: no single wait is long."""
        self.send_response(206)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        for at in itertools.count():
            self.wfile.write(body[at : at + 1])
            time.sleep(0.05)


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that went away, and resets, are what the tests are about."""


@pytest.fixture
def range_server() -> Iterator[RangeServer]:
    """A server of ranges on 127.0.0.1, and its faults."""
    with _serving_ranges() as served:
        yield served


@pytest.fixture
def secure_range_server(tmp_path: Path) -> Iterator[tuple[RangeServer, Path]]:
    """The same over TLS, as `localhost`, and the certificate that vouches for it."""
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=localhost"
    )
    command += f" -addext subjectAltName=DNS:localhost -keyout {key} -out {certificate}"
    subprocess.run(command.split(), check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with _serving_ranges(context) as served:
        served.url = served.url.replace("http://127.0.0.1", "https://localhost")
        yield served, certificate


@contextmanager
def _serving_ranges(context: ssl.SSLContext | None = None) -> Iterator[RangeServer]:
    server = _QuietServer(("127.0.0.1", 0), _RangeHandler)
    if context:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    served = RangeServer(f"http://127.0.0.1:{server.server_address[1]}")
    server.RequestHandlerClass = type("Handler", (_RangeHandler,), {"served": served})
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield served
    server.shutdown()
    server.server_close()
