"""A warm process for the tests: `liverseg` commands are forked from it, with every library loaded.

A command started cold spends most of its seconds importing. One forked here is a process of its own all the
same: its own session, environment and output, killed by its id as any other, and its children are its own.

    python tests/warm.py SOCKET SCRIPT

answers on a Unix socket. A request is one message: arguments, environment and folder as JSON, with two open
files for standard output and error. The answer is the process id, and later its exit code, a line each.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import sys
import threading
from typing import Any, NoReturn

MODULES = """
    flows.cli flows.local_api flows.pipeline flows.retrain
    liverseg_core.artifacts.s3_store liverseg_core.cases.ingest liverseg_core.cases.verify
    liverseg_core.evaluation.evaluate liverseg_core.evaluation.score liverseg_core.inference.predict_scan
    liverseg_core.models.ensemble liverseg_core.phantom.dataset liverseg_core.report.report
    liverseg_core.sources.source liverseg_core.volumes.compiled
    liverseg_core.training.queue_loader liverseg_core.training.train
    tasks.registry.champion tasks.registry.metric_log tasks.registry.publish tasks.registry.version_scores
    av distributed.deploy.local matplotlib.pyplot mlflow.sklearn.utils mlflow.store.tracking.sqlalchemy_store
    nibabel numba prefect.artifacts prefect.runtime s3fs scipy.ndimage torch._dynamo torchio zarr
"""
"""Ours come first: they say how libraries shall start."""
REQUEST_BYTES = 1 << 20
QUIET = {"PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL"}
"""As flows/cli.py says before it imports Prefect."""


def _load() -> dict[str, str]:
    """Import everything; returns the variables that libraries, and our own modules for them, have set."""
    os.environ.update(QUIET)
    before = dict(os.environ)
    for name in MODULES.split():
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # what is shared with the children stays shared
    return QUIET | {name: value for name, value in os.environ.items() if before.get(name) != value}


def _serve(path: str) -> dict[str, Any]:
    """Fork a child for each request; returns in the children alone, with what was asked of them."""
    wake, signalled = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(signalled, warn_on_full_buffer=False)
    running: dict[int, socket.socket] = {}
    with socket.socket(socket.AF_UNIX) as listener, selectors.DefaultSelector() as ready:
        listener.bind(path)
        listener.listen(64)
        ready.register(listener, selectors.EVENT_READ)
        ready.register(wake, selectors.EVENT_READ)
        while True:
            for event, _ in ready.select():
                if event.fileobj == wake:
                    os.read(wake, 4096)
                    _reap(running)
                elif asked := _fork(listener.accept()[0], running):
                    return asked


def _fork(connection: socket.socket, running: dict[int, socket.socket]) -> dict[str, Any] | None:
    request, files, _, _ = socket.recv_fds(connection, REQUEST_BYTES, 2)
    child = os.fork()
    if child == 0:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        return {**json.loads(request), "files": files}
    for file in files:
        os.close(file)
    running[child] = connection
    _tell(connection, child)
    return None


def _reap(running: dict[int, socket.socket]) -> None:
    while running:
        child, status = os.waitpid(-1, os.WNOHANG)
        if child == 0:
            return
        connection = running.pop(child)
        _tell(connection, os.waitstatus_to_exitcode(status))
        connection.close()


def _tell(connection: socket.socket, number: int) -> None:
    with contextlib.suppress(OSError):  # the test that asked may be gone
        connection.sendall(b"%d\n" % number)


def _become(script: str, request: dict[str, Any], loaded: dict[str, str]) -> None:
    """Make this child what a shell would have started."""
    os.setsid()
    for target, file in zip((1, 2), request["files"], strict=True):
        os.dup2(file, target)
        os.close(file)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(loaded | request["environment"])
    from prefect.context import refresh_global_settings_context

    refresh_global_settings_context()
    sys.argv = [script, *request["arguments"]]
    main = sys.modules["__main__"]
    main.__file__, main.__spec__ = script, None  # processes that it spawns load the script, not this file


def _end(code: int) -> NoReturn:
    """As Python ends, but nothing is taken apart: that takes half a second, and the system frees it all."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    socket_path, script_path = sys.argv[1:]
    sys.path.pop(0)  # tests/ holds modules that would hide others
    set_while_loading = _load()
    asked = _serve(socket_path)
    _become(script_path, asked, set_while_loading)
    from flows.cli import main

    try:
        main()
    except SystemExit as ended:
        _end(int(ended.code or 0))
