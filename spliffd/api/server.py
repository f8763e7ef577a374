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
import time
from typing import TYPE_CHECKING, NamedTuple

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from spliffd import ipc, metrics, privileges, resident, seccomp
from spliffd.api import slack
from spliffd.api.access import CertificateDoor, Door, GroupDoor, OwnDoor
from spliffd.api.auth_server import AuthServer
from spliffd.api.history import History
from spliffd.api.hub import Hub
from spliffd.api.metrics_server import MetricsServer
from spliffd.api.service import NAME, Service
from spliffd.api.supervisor_link import SupervisorLink
from spliffd.api.tokens import Tokens
from spliffd.config import Config, Tls, auth_socket, user_socket
from spliffd.counters import Area, Region
from spliffd.errors import FailedError

if TYPE_CHECKING:
    from spliffd.api.archive import DiskArchive

log = logging.getLogger("spliffd.api")

SOCKET_UMASK = 0o117
"""Leaves 0660: owner and group may connect."""

OPEN_UMASK = 0o111
"""Leaves 0666: everybody may connect."""

DRAIN_SECONDS = 2.0
"""What a stopping daemon grants watchers to read what is queued for them."""

MAX_REQUEST_BYTES = 256 << 10
"""Largest request: a filter with every list full is far below."""

OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
)


OWN_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_allowed_incoming_connections", 256),
    ("grpc.max_concurrent_streams", 16),
    ("grpc.max_connection_idle_ms", 30_000),
)
"""Of the socket for everybody: what a hostile client may open costs some 100 KiB each, and makes nobody else
wait."""


TCP_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_allowed_incoming_connections", 256),
    ("grpc.max_concurrent_streams", 64),
)
"""Of the TCP listener: known clients, but their machines may be many."""


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
    config = inputs.config
    store = _archive(inputs)
    tokens = Tokens(_reveal_gid(config.access.reveal_group))
    with slack.together():
        grpc.aio.init_grpc_aio()  # its threads, from which all later ones come
        doors = _doors(inputs, tokens)
    for_all = config.access.users == "own"
    auth = AuthServer(_auth_socket(auth_socket(inputs.path), inputs.identity, for_all=for_all), tokens)
    _drop_privileges(inputs.identity)
    # Opened without privileges, so that what a damaged file does to SQLite it does to user spliff.
    position = store.open() if store is not None else 1
    history = History(config.history, time.time_ns(), position, store)
    hub = Hub(
        inputs.area.api,
        config.capture.workers,
        history,
        records=config.capture.unwatched == "metrics",
        numbers_owners=config.access.users == "own",
        most=(config.access.watchers, config.access.watchers),
    )

    supervisor = SupervisorLink(inputs.control, hub)
    loop.add_signal_handler(signal.SIGTERM, supervisor.stop.set)
    healthy = []
    for server, door in doors:
        service = Service(hub, supervisor, inputs.area, inputs.kernel, config, door, store)
        server.add_generic_rpc_handlers((service.handler(),))
        healthy.append(await _add_standard_services(server))
        await server.start()
    await auth.start()
    page = None
    if inputs.metrics is not None:
        page = MetricsServer(inputs.metrics, lambda: metrics.exposition(service.families()))
        await page.start()
    resident.let_go()
    supervisor.ready()
    log.debug("serving on %s", inputs.path)

    await supervisor.stop.wait()
    auth.stop()
    if page is not None:
        await page.stop()
    if supervisor.lost:
        log.error("the supervisor is gone: the api ends")
        for server, _ in doors:
            await server.stop(None)
        return 1
    for one in healthy:
        await one.enter_graceful_shutdown()
    await _drain(hub, [server for server, _ in doors])
    if store is not None:
        history.flush()
        store.close()
    supervisor.close()
    return 0


def _doors(inputs: Inputs, tokens: Tokens) -> list[tuple[grpc.aio.Server, Door]]:
    """A server for each way in: gRPC does not tell a handler by which of them a call came."""
    region, path, gid = inputs.area.api, inputs.path, inputs.identity.socket_gid
    auth = auth_socket(path)
    server = grpc.aio.server(options=OPTIONS)
    _bind(server, path, SOCKET_UMASK, gid)
    doors: list[tuple[grpc.aio.Server, Door]] = [(server, GroupDoor(tokens, auth, region))]
    if inputs.config.access.users == "own":
        server = grpc.aio.server(options=(*OPTIONS, *OWN_OPTIONS))
        _bind(server, user_socket(path), OPEN_UMASK, 0)
        doors.append((server, OwnDoor(tokens, auth, region)))
    if inputs.config.tls.listen:
        server = grpc.aio.server(options=(*OPTIONS, *TCP_OPTIONS))
        _bind_tcp(server, inputs.config.tls)
        doors.append((server, CertificateDoor(inputs.config.tls.watch, inputs.config.tls.reveal, region)))
    return doors


def _bind_tcp(server: grpc.aio.Server, tls: Tls) -> None:
    """Mutual TLS, or nothing: without a certificate of the authority nobody gets to speak HTTP/2."""
    pieces = []
    for name, path in (("key", tls.key), ("certificate", tls.certificate), ("client_ca", tls.client_ca)):
        try:
            with open(path, "rb") as file:
                pieces.append(file.read())
        except OSError as error:
            raise FailedError(
                f"tls.{name}: {path} cannot be read: {error.strerror}", "name a PEM file"
            ) from None
    key, certificate, authority = pieces
    credentials = grpc.ssl_server_credentials([(key, certificate)], authority, require_client_auth=True)
    try:
        bound = server.add_secure_port(tls.listen, credentials)
    except RuntimeError as error:
        log.error("%s", error)
        bound = 0
    if not bound:
        raise FailedError(
            f"tls.listen: cannot listen on {tls.listen} with that certificate and key",
            "see that the address is this host's, the port free, and that the PEM files belong together",
        )


def _bind(server: grpc.aio.Server, path: str, umask: int, gid: int) -> None:
    before = os.umask(umask)
    try:
        server.add_insecure_port(f"unix:{path}")
        if os.geteuid() == 0:
            os.chown(path, 0, gid)
    except (RuntimeError, OSError) as error:
        raise _cannot_listen(path, str(error)) from None
    finally:
        os.umask(before)


def _auth_socket(path: str, identity: Identity, *, for_all: bool) -> socket.socket:
    """The socket where tokens are issued, for those who may use one of the others."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    sock.setblocking(False)
    before = os.umask(OPEN_UMASK if for_all else SOCKET_UMASK)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)  # left by an api that was killed; the supervisor's lock makes it ours
        sock.bind(path)
        if os.geteuid() == 0:
            os.chown(path, 0, identity.socket_gid)
    except OSError as error:
        raise _cannot_listen(path, str(error.strerror)) from None
    finally:
        os.umask(before)
    return sock


def _cannot_listen(path: str, why: str) -> FailedError:
    return FailedError(
        f"cannot listen on {path}: {why}", "see that its directory exists and that no other program uses it"
    )


def _archive(inputs: Inputs) -> DiskArchive | None:
    """The file behind history, in a folder that the user we become may write to."""
    path = inputs.config.history.path
    if not path:
        return None
    # SQLite costs 2 MiB: loaded by those only who want it.
    from spliffd.api.archive import DiskArchive

    folder = os.path.dirname(path)
    remedy = "name a file in a folder of its own; the packaged unit allows /var/lib/spliff/history/history.db"
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder, 0o700)
            if os.geteuid() == 0:
                os.chown(folder, inputs.identity.uid, inputs.identity.gid)
        owner = os.stat(folder).st_uid
    except OSError as error:
        raise FailedError(f"history.path: {folder} cannot be made: {error.strerror}", remedy) from None
    if owner != inputs.identity.uid:
        raise FailedError(f"history.path: {folder} belongs to another user (uid {owner})", remedy)
    return DiskArchive(inputs.config.history, inputs.area.api)


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


async def _drain(hub: Hub, servers: list[grpc.aio.Server]) -> None:
    """Ends every stream with OK after what waits, or cuts it off when its time is over."""
    hub.drain()
    hub.close()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_SECONDS):
            await hub.empty()
    for subscriber in hub.subscribers:
        subscriber.count_rest()
        log.warning("a watcher did not read what was queued for it")
    for server in servers:
        await server.stop(0.1)


def report_failure(control: socket.socket, error: FailedError) -> None:
    """Tells the supervisor why the api ends."""
    with contextlib.suppress(OSError):
        control.send(ipc.encode(ipc.Failed(message=error.message, remedy=error.remedy)))
