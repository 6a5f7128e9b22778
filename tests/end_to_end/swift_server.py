"""A real object store with an S3 door: OpenStack Swift, one device, in the foreground until it is killed.

Run by the system's Python, for which Debian packages Swift: `python3 swift_server.py FOLDER PORT`.
"""

import ctypes
import getpass
import os
import runpy
import signal
import socket
import subprocess
import sys
from pathlib import Path

BACKENDS = ("account", "container", "object")
COMMON = """
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
user = {user}
swift_dir = {folder}
devices = {folder}/devices
mount_check = false
"""
BACKEND = """
[pipeline:main]
pipeline = {kind}-server
[app:{kind}-server]
use = egg:swift#{kind}
"""
PROXY = """
[pipeline:main]
pipeline = catch_errors healthcheck proxy-logging cache s3api tempauth bulk slo dlo proxy-logging proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = testing .admin
[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:{memcached}
[filter:s3api]
use = egg:swift#s3api
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:healthcheck]
use = egg:swift#healthcheck
[filter:proxy-logging]
use = egg:swift#proxy_logging
[filter:bulk]
use = egg:swift#bulk
[filter:slo]
use = egg:swift#slo
[filter:dlo]
use = egg:swift#dlo
"""
HASHES = "[swift-hash]\nswift_hash_path_prefix = a\nswift_hash_path_suffix = b\n"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def die_with_parent() -> None:
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def make_ring(folder: Path, kind: str, port: int) -> None:
    from swift.common.ring import RingBuilder

    builder = RingBuilder(1, 1, 0)
    place = {"region": 1, "zone": 1, "ip": "127.0.0.1", "port": port, "device": "d1", "weight": 1}
    builder.add_dev({"id": 0, **place, "replication_ip": "127.0.0.1", "replication_port": port})
    builder.rebalance()
    builder.get_ring().save(str(folder / f"{kind}.ring.gz"))


def serve(folder: Path, kind: str) -> None:
    """Become one of Swift's servers."""
    from swift.common.utils import set_swift_dir

    set_swift_dir(str(folder))
    program = f"/usr/bin/swift-{kind}-server"
    sys.argv = [program, str(folder / f"{kind}.conf"), "verbose"]
    runpy.run_path(program, run_name="__main__")


def main(folder: Path, port: int) -> None:
    ports = {kind: free_port() for kind in (*BACKENDS, "memcached")} | {"proxy": port}
    (folder / "devices" / "d1").mkdir(parents=True)
    (folder / "swift.conf").write_text(HASHES)
    common = {"user": getpass.getuser(), "folder": folder, "memcached": ports["memcached"]}
    for kind in BACKENDS:
        make_ring(folder, kind, ports[kind])
        settings = (COMMON + BACKEND).format(port=ports[kind], kind=kind, **common)
        (folder / f"{kind}.conf").write_text(settings)
    (folder / "proxy.conf").write_text((COMMON + PROXY).format(port=port, **common))
    memcached = ["memcached", "-l", "127.0.0.1", "-p", str(ports.pop("memcached")), "-u", getpass.getuser()]
    commands = [memcached, *([sys.executable, __file__, str(folder), kind] for kind in ports)]
    processes = [subprocess.Popen(command, preexec_fn=die_with_parent) for command in commands]  # noqa: PLW1509
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        os.wait()  # none of them ends by itself
    finally:
        for process in processes:  # each has made a session of its own
            process.kill()
            process.wait()


if __name__ == "__main__":
    where, what = Path(sys.argv[1]), sys.argv[2]
    main(where, int(what)) if what.isdigit() else serve(where, what)
