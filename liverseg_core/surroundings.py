"""What a process finds around it, made fit for the libraries that read it while they are imported.

Called before any of them is: by `liverseg_core` itself, so in each process that works for us.
"""

import contextlib
import os
from pathlib import Path

LOOPBACK = ("127.0.0.1", "localhost", "::1")
NAMES = ("LOGNAME", "USER", "LNAME", "USERNAME")
"""Where Python looks for the user's name before it asks the system."""


def settle() -> None:
    """See to proxies, the user's name and the user's home, here and for child processes."""
    spare_loopback()
    name_user()
    give_home()


def spare_loopback() -> None:
    """Add this machine to what needs no proxy: nothing of ours that is on it may go through one.

    Libraries read either spelling, and some of them the one that is set to nothing.
    """
    if not any(name.lower().endswith("_proxy") for name in os.environ):
        return
    spared = [
        part.strip() for name in ("NO_PROXY", "no_proxy") for part in os.environ.get(name, "").split(",")
    ]
    if "*" in spared:
        return
    told = ",".join(dict.fromkeys([*filter(None, spared), *LOOPBACK]))
    os.environ.update({"NO_PROXY": told, "no_proxy": told})


def name_user() -> None:
    """Give a user whom the system does not know, as in many containers, a name: MLflow asks for one."""
    if not any(map(os.environ.get, NAMES)) and not _known():
        os.environ["LOGNAME"] = f"uid-{os.getuid()}"


def give_home() -> None:
    """Give a user without a home, or with one that can't be written to, a folder of their own.

    Prefect keeps the database of its temporary API there, and other libraries what can be made anew. A home
    that is there stays theirs: it may hold the credentials of a store.
    """
    home = os.environ.get("HOME") or (_known() or "")
    if home and os.access(home, os.W_OK | os.X_OK) and Path(home).is_dir():
        return
    with contextlib.suppress(OSError):
        folder = _own_folder()
        if not (home and Path(home).is_dir()):
            os.environ["HOME"] = folder
            return
        for name, below in (
            ("PREFECT_HOME", ".prefect"),
            ("XDG_CACHE_HOME", ".cache"),
            ("MPLCONFIGDIR", "mpl"),
        ):
            os.environ.setdefault(name, f"{folder}/{below}")


def _known() -> str | None:
    """The home that the system has for this user; None for one whom it does not know."""
    import pwd

    with contextlib.suppress(KeyError):
        return pwd.getpwuid(os.getuid()).pw_dir
    return None


def _own_folder() -> str:
    """The same one each time, unless another user was there first."""
    import tempfile

    folder = Path(tempfile.gettempdir()) / f"liverseg-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    safe = status.st_uid == os.getuid() and status.st_mode & 0o170077 == 0o040000
    return str(folder) if safe else tempfile.mkdtemp(prefix="liverseg-")
