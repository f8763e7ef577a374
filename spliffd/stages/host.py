"""What a run takes of the host before anything else: accounts, the lock, the port of the metrics page.

Takes parts of the configuration; returns ids, an fd, a socket. What cannot be had is an error that says what
to do. Loads nothing and starts nothing.
"""

from __future__ import annotations

import fcntl
import grp
import os
import pwd
import socket

from spliffd import config, doctor
from spliffd.config import Access
from spliffd.errors import AlreadyRunningError, FailedError, HostError


def accounts(access: Access) -> tuple[int, int, int]:
    """uid, gid and the socket's gid that the daemon's processes run with; raises HostError."""
    if os.uname().machine != "x86_64":
        raise HostError(
            f"this version runs on x86-64 only, not on {os.uname().machine}",
            "wait for the ring reader of other processors (spliffd/kernel/ring.py says why)",
        )
    if os.geteuid():
        raise HostError(f"needs root, but runs as user {os.geteuid()}", "start it with sudo")
    check = doctor.btf(doctor.Host.here().btf)
    if check.state is doctor.State.MISSING:
        raise HostError(f"{check.name}: {check.detail}", check.remedy)
    check = doctor.account(access.user, access.group)
    if check.state is doctor.State.MISSING:
        raise HostError(f"{check.name}: {check.detail}", check.remedy)
    entry = pwd.getpwnam(access.user)
    return entry.pw_uid, entry.pw_gid, grp.getgrnam(access.group).gr_gid


def lock(path: str) -> int:
    """One daemon a socket: returns the fd of the lock, which goes with the process, however it ends."""
    folder = os.path.dirname(os.path.abspath(path))
    try:
        os.makedirs(folder, mode=0o755, exist_ok=True)
        fd = os.open(path + ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise AlreadyRunningError(
            f"another spliffd serves {path}", "use it (spliffctl status), or give --socket another path"
        ) from None
    except OSError as error:
        raise FailedError(f"{folder}: {error.strerror}", "give --socket a path that root may make") from None
    return fd


def metrics_socket(listen: str) -> socket.socket | None:
    """The listening socket of the metrics page, None when it is off; raises FailedError."""
    if listen == "off":
        return None
    host, port = config.parse_address(listen, "metrics.listen")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=16)
    except OSError as error:
        # Python repeats the address behind the reason, in brackets.
        reason = (error.strerror or str(error)).partition(" (")[0]
        raise FailedError(
            f"metrics: {listen}: {reason}",
            "free the port, or set metrics.listen (--metrics ADDR:PORT, or off)",
        ) from None
    listener.setblocking(False)
    return listener
