"""The temporary Prefect API of `liverseg run`, with real processes."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

CLIENT = """
import os, sys, time
from pathlib import Path
from flows.local_api import local_api

with local_api(Path(sys.argv[1])) as api:
    from prefect import flow, get_run_logger, task

    @task
    def double(value):
        get_run_logger().info("doubling %d", value)
        return 2 * value

    @flow
    def toy(mode):
        total = sum(double(i) for i in range(4))
        print(api and api.process.pid, flush=True)
        if mode == "fail":
            raise ValueError("on purpose")
        if mode == "hang":
            time.sleep(60)
        return total

    if api is not None:
        api.wait()
    print(toy(sys.argv[2]), os.environ["PREFECT_API_URL"])
print("PREFECT_API_URL" in os.environ)
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One database for all runs of this module: only the first has to create it."""
    return tmp_path_factory.mktemp("home")


def environment(home: Path) -> dict[str, str]:
    """Nothing of the Prefect settings of whoever runs the tests."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return clean | {"PREFECT_HOME": str(home / "prefect")}


def client(home: Path, mode: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", CLIENT, str(home), mode],
        env=environment(home),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def rows(home: Path, query: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(home / "prefect.db")) as database:
        return database.execute(query).fetchall()


def gone(pid: int) -> Iterator[bool]:
    """Whether the process is gone, asked for ten seconds."""
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            yield True
        time.sleep(0.1)
    yield False


def test_quiet_complete_and_gone(home: Path) -> None:
    done = client(home, "return")
    assert (done.returncode, done.stderr) == (0, "")
    pid, result, after = done.stdout.splitlines()
    assert result.startswith("12 http://127.0.0.1:")
    assert after == "False"
    assert next(gone(int(pid)))
    assert rows(home, "select state_type, count(*) from task_run group by 1") == [("COMPLETED", 4)]
    assert rows(home, "select state_type from flow_run") == [("COMPLETED",)]
    assert rows(home, "select count(*) from log where message like 'doubling%'") == [(4,)]


@pytest.mark.whole
def test_states_arrive_when_the_flow_fails(home: Path) -> None:
    done = client(home, "fail")
    assert done.returncode == 1
    assert "ValueError: on purpose" in done.stderr
    assert next(gone(int(done.stdout.split()[0])))
    assert rows(home, "select state_type from flow_run order by start_time desc limit 1") == [("FAILED",)]


@pytest.mark.whole
def test_a_killed_client_leaves_no_server(home: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", CLIENT, str(home), "hang"],
        env=environment(home),
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
    assert next(gone(pid))


@pytest.mark.whole
def test_runs_side_by_side_share_a_new_database(tmp_path: Path) -> None:
    both = [
        subprocess.Popen(
            [sys.executable, "-c", CLIENT, str(tmp_path), "return"],
            env=environment(tmp_path),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in both:
        assert process.communicate(timeout=600)[1] == ""
        assert process.returncode == 0
    assert rows(tmp_path, "select state_type, count(*) from task_run group by 1") == [("COMPLETED", 8)]


@pytest.mark.parametrize("place", ["environment", "profile"])
def test_a_configured_api_is_left_alone(tmp_path: Path, place: str) -> None:
    url = "http://127.0.0.1:9/api"
    settings = environment(tmp_path)
    if place == "environment":
        settings |= {"PREFECT_API_URL": url}
    else:
        (tmp_path / "prefect").mkdir()
        profile = f'active = "site"\n[profiles.site]\nPREFECT_API_URL = "{url}"\n'
        (tmp_path / "prefect" / "profiles.toml").write_text(profile)
    code = (
        "from flows.local_api import local_api\n"
        "with local_api() as api:\n"
        "    from prefect.settings import get_current_settings\n"
        "    print(api, get_current_settings().api.url)"
    )
    printed = subprocess.check_output([sys.executable, "-c", code], env=settings, text=True, timeout=300)
    assert printed.split() == ["None", url]
    if place == "environment":  # a profile is read when the server is under way, maybe with its database
        assert not list(tmp_path.rglob("prefect.db"))


@pytest.mark.whole
def test_a_server_that_cannot_start_is_a_coded_error(tmp_path: Path) -> None:
    (tmp_path / "prefect.db").write_text("not a database, and long enough to be read as one" * 100)
    done = client(tmp_path, "return")
    assert done.returncode == 1
    assert "LS410: the temporary Prefect API did not start" in done.stderr.splitlines()[-1]
