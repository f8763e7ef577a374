"""The life of the api process: bind as root, give root up, serve, drain, end.

Takes the arguments of ``__main__`` with every fd opened; returns the exit code. The order is the
security: nothing is accepted before root is gone, and the socket has its final mode from the moment it
exists. One asyncio loop, no thread but gRPC's own, no timer while nothing happens.
"""

from __future__ import annotations

import asyncio
import contextlib
import grp
import logging
import os
import signal
import socket
from typing import NamedTuple

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from spliffd import ipc, metrics, privileges, seccomp
from spliffd.api.auth_server import AuthServer
from spliffd.api.hub import Hub
from spliffd.api.metrics_server import MetricsServer
from spliffd.api.service import NAME, Service
from spliffd.api.supervisor_link import SupervisorLink
from spliffd.api.tokens import Tokens
from spliffd.config import Config, auth_socket
from spliffd.counters import Area, Region
from spliffd.errors import FailedError

log = logging.getLogger("spliffd.api")

SOCKET_UMASK = 0o117
"""Leaves 0660: owner and group may connect."""

DRAIN_SECONDS = 2.0
"""What a stopping daemon grants watchers to read what is queued for them."""

MAX_REQUEST_BYTES = 256 << 10
"""Largest request: a filter with every list full is far below."""

OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
)


class Identity(NamedTuple):
    """Whom the process becomes, and which group may use the socket."""

    uid: int
    gid: int
    socket_gid: int


class Inputs(NamedTuple):
    """What the supervisor handed over."""

    control: socket.socket
    area: Area
    kernel: Region
    metrics: socket.socket | None
    path: str
    identity: Identity
    config: Config


async def run(inputs: Inputs) -> int:
    """Serves until told to stop; the exit code. Raises FailedError when it cannot serve."""
    loop = asyncio.get_running_loop()
    hub = Hub(inputs.area.api, inputs.config.capture.workers)
    server = grpc.aio.server(options=OPTIONS)
    _bind(server, inputs.path, inputs.identity)
    tokens = Tokens(_reveal_gid(inputs.config.access.reveal_group))
    auth = AuthServer(_auth_socket(auth_socket(inputs.path), inputs.identity), tokens)
    _drop_privileges(inputs.identity)

    supervisor = SupervisorLink(inputs.control, hub)
    loop.add_signal_handler(signal.SIGTERM, supervisor.stop.set)
    service = Service(hub, supervisor, inputs.area, inputs.kernel, inputs.config, tokens)
    server.add_generic_rpc_handlers((service.handler(),))
    healthy = await _add_standard_services(server)
    await server.start()
    await auth.start()
    page = None
    if inputs.metrics is not None:
        page = MetricsServer(inputs.metrics, lambda: metrics.exposition(service.families()))
        await page.start()
    supervisor.ready()
    log.debug("serving on %s", inputs.path)

    await supervisor.stop.wait()
    auth.stop()
    if page is not None:
        await page.stop()
    if supervisor.lost:
        log.error("the supervisor is gone: the api ends")
        await server.stop(None)
        return 1
    await healthy.enter_graceful_shutdown()
    await _drain(hub, server)
    supervisor.close()
    return 0


def _bind(server: grpc.aio.Server, path: str, identity: Identity) -> None:
    before = os.umask(SOCKET_UMASK)
    try:
        server.add_insecure_port(f"unix:{path}")
        if os.geteuid() == 0:
            os.chown(path, 0, identity.socket_gid)
    except (RuntimeError, OSError) as error:
        raise FailedError(
            f"cannot listen on {path}: {error}",
            "see that its directory exists and that no other program uses it",
        ) from None
    finally:
        os.umask(before)


def _auth_socket(path: str, identity: Identity) -> socket.socket:
    """The socket where tokens are issued, for those who may use the other one."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    sock.setblocking(False)
    before = os.umask(SOCKET_UMASK)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)  # left by an api that was killed; the supervisor's lock makes it ours
        sock.bind(path)
        if os.geteuid() == 0:
            os.chown(path, 0, identity.socket_gid)
    except OSError as error:
        raise FailedError(
            f"cannot listen on {path}: {error.strerror}",
            "see that its directory exists and that no other program uses it",
        ) from None
    finally:
        os.umask(before)
    return sock


def _reveal_gid(group: str) -> int | None:
    if not group:
        return None
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise FailedError(
            f"access.reveal_group: there is no group {group}",
            f"make it (sudo groupadd {group}), or set reveal_group to another one",
        ) from None


def _drop_privileges(identity: Identity) -> None:
    try:
        privileges.drop(identity.uid, identity.gid)
        seccomp.api()
    except (OSError, RuntimeError) as error:
        raise FailedError(
            f"the api cannot become uid {identity.uid}, gid {identity.gid}: {error}",
            "start spliffd as root with CAP_SETUID and CAP_SETGID, as its systemd unit does",
        ) from None


async def _add_standard_services(server: grpc.aio.Server) -> health.aio.HealthServicer:
    healthy = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    for name in ("", NAME):
        await healthy.set(name, health_pb2.HealthCheckResponse.SERVING)
    reflection.enable_server_reflection((NAME, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    return healthy


async def _drain(hub: Hub, server: grpc.aio.Server) -> None:
    """Ends every stream with OK after what waits, or cuts it off when its time is over."""
    hub.drain()
    hub.close()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_SECONDS):
            await hub.empty()
    for subscriber in hub.subscribers:
        subscriber.count_rest()
        log.warning("a watcher did not read what was queued for it")
    await server.stop(0.1)


def report_failure(control: socket.socket, error: FailedError) -> None:
    """Tells the supervisor why the api ends."""
    with contextlib.suppress(OSError):
        control.send(ipc.encode(ipc.Failed(message=error.message, remedy=error.remedy)))
