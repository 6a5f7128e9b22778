"""The command line as the tests type it: forked from a warm process, or started cold."""

import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

LIVERSEG = str(Path(sys.executable).with_name("liverseg"))
LATE = ("AWS_", "BROWSER", "DISPLAY", "LIVERSEG_", "MLFLOW_TRACKING_URI", "PREFECT_", "SSL_CERT_FILE")
"""Variables that are read when they are needed. With any other a command is started cold: libraries look at
those while they are imported.
"""


@dataclass(frozen=True)
class Ended:
    """What a command left behind."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def data(self) -> Any:
        """Standard output, which must be one JSON document and nothing else."""
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The last line on standard error."""
        return self.err.splitlines()[-1]

    def ok(self) -> "Ended":
        """This, after checking that the command went well and in silence."""
        assert self.code == 0, self.err
        assert not re.search(r"traceback|warning|error|deprecat", self.err, re.IGNORECASE), self.err
        return self


class Forked:
    """`liverseg` in a process that a warm one forked; of `subprocess.Popen` what the tests need.

    Args:
        warm: The warm process's socket.
        arguments: What follows `liverseg`.
        environment: All of it.
    """

    def __init__(self, warm: str, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        self.returncode: int | None = None
        self._output = TemporaryFile(), TemporaryFile()  # noqa: SIM115  (read when it has ended)
        self._answers = socket.socket(socket.AF_UNIX)
        self._answers.connect(warm)
        asked = {"arguments": arguments, "environment": dict(environment), "folder": str(Path.cwd())}
        socket.send_fds(self._answers, [json.dumps(asked).encode()], [file.fileno() for file in self._output])
        self.pid = int(self._line())

    def _line(self) -> bytes:
        line = b""
        while not line.endswith(b"\n"):
            line += self._answers.recv(1) or b"1\n"  # the warm process itself is gone
        return line

    def poll(self) -> int | None:
        """Its exit code, or None while it runs."""
        if self.returncode is None and select.select([self._answers], [], [], 0)[0]:
            self.returncode = int(self._line())
            self._answers.close()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, when it has ended; negative for a signal."""
        if self.returncode is None and not select.select([self._answers], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(LIVERSEG, timeout or 0)
        code = self.poll()
        assert code is not None
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for its end; what it wrote to standard output and error."""
        self.wait(timeout)
        for file in self._output:
            file.seek(0)
        out, err = (file.read().decode() for file in self._output)
        return out, err

    def send_signal(self, number: int) -> None:
        """Nothing where it has ended: its id may be another's."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it."""
        self.send_signal(signal.SIGKILL)


Process = subprocess.Popen[str] | Forked


def start_command(
    warm: str | None, arguments: Sequence[str], environment: Mapping[str, str], changes: Mapping[str, str]
) -> Process:
    """Start `liverseg`, forked where the changes of the environment allow it and there is a warm process."""
    told = {**environment, **changes}
    if warm and all(name.startswith(LATE) for name in changes):
        return Forked(warm, arguments, told)
    return subprocess.Popen(
        [LIVERSEG, *arguments],
        env=told,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run_to_end(process: Process, begun: float, timeout: float = 1200) -> Ended:
    """What a command leaves when it has ended."""
    out, err = process.communicate(timeout=timeout)
    assert process.returncode is not None
    return Ended(process.returncode, out, err, time.monotonic() - begun)
