"""The way to the daemon: its socket, the gRPC channel, and what its errors mean to the operator.

Takes the path of the daemon's Unix socket, returns stubs of the contract. Tries the socket itself before
gRPC does, because gRPC hides the errno that tells "not running" from "not allowed". Every error leaves as
a ``ClientError`` with a sentence that says what to do. Never retries on its own.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar

from spliffctl.errors import (
    ClientError,
    NotPermittedError,
    PreconditionError,
    RefusedError,
    UnavailableError,
)
from spliffctl.render.quote import quote

if TYPE_CHECKING:
    import grpc
    import grpc.aio

    from spliffd.pb import spliff_pb2 as pb
    from spliffd.pb.spliff_pb2_grpc import SpliffStub

Result = TypeVar("Result")

DEFAULT_SOCKET = "/run/spliff/spliffd.sock"

CONNECT_TIMEOUT_S = 2.0
"""A listening socket accepts at once; one that does not has a full backlog, so its daemon hangs."""

CALL_TIMEOUT_S = 10.0
"""Longest wait for the answer to a question; the daemon gives itself 5 s for those to root."""

START_DAEMON = "start it with: sudo systemctl start spliffd, or name its socket with --socket"

_OPTIONS = [
    # Bodies come in parts far below it, but a batch of many exchanges may pass gRPC's 4 MiB.
    ("grpc.max_receive_message_length", -1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.default_authority", "localhost"),
]


class Remote(str):  # noqa: SLOT000 - mypy wants the attributes declared
    """``HOST:PORT`` of a daemon that is reached by TLS, in place of a socket's path."""

    authority: str
    certificate: str
    key: str
    name: str

    def __new__(cls, address: str, authority: str, certificate: str, key: str, name: str) -> Self:
        """``authority``, ``certificate`` and ``key`` are files; ``name`` the daemon's, if not HOST."""
        made = super().__new__(cls, address)
        made.authority, made.certificate, made.key, made.name = authority, certificate, key, name
        return made

    def credentials(self) -> grpc.ChannelCredentials:
        """What the files hold; raises RefusedError."""
        import grpc

        pieces = []
        for option, path in (
            ("--tls-ca", self.authority),
            ("--tls-key", self.key),
            ("--tls-cert", self.certificate),
        ):
            try:
                with open(path, "rb") as file:
                    pieces.append(file.read())
            except OSError as error:
                raise RefusedError(f"{option} {quote(path)}: {error.strerror}") from None
        return grpc.ssl_channel_credentials(*pieces)

    def options(self) -> list[tuple[str, Any]]:
        """Options of its channels."""
        options = [option for option in _OPTIONS if option[0] != "grpc.default_authority"]
        if self.name:
            options += [("grpc.ssl_target_name_override", self.name)]
        return options


def socket_path(name: str) -> str:
    """The absolute path of ``PATH``, ``unix:PATH`` or ``unix:///PATH``."""
    for prefix in ("unix://", "unix:"):
        if name.startswith(prefix):
            name = name.removeprefix(prefix)
            break
    return os.path.abspath(name)


def try_socket(path: str) -> None:
    """Connects and hangs up. Raises what keeps this user from talking to the daemon."""
    if isinstance(path, Remote):
        return  # a TCP connection says nothing that gRPC hides
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(CONNECT_TIMEOUT_S)
        try:
            probe.connect(path)
        except (FileNotFoundError, NotADirectoryError):
            raise UnavailableError(
                f"spliffd is not running (no socket {quote(path)}): {START_DAEMON}"
            ) from None
        except ConnectionRefusedError:
            raise UnavailableError(
                f"spliffd is not running (nobody answers at {quote(path)}): {START_DAEMON}"
            ) from None
        except PermissionError:
            raise NotPermittedError(_why_not_permitted(path)) from None
        except (TimeoutError, BlockingIOError):
            raise UnavailableError(
                f"spliffd does not accept connections at {quote(path)}: see systemctl status spliffd"
            ) from None
        except OSError as error:
            raise RefusedError(f"--socket {quote(path)}: {error.strerror or error}") from None


def _why_not_permitted(path: str) -> str:
    """Which group is missing, or who may use the socket."""
    import grp
    import pwd

    try:
        status = os.stat(path)
    except PermissionError:
        # The folder is closed already; it has the group of the socket in it.
        try:
            status = os.stat(os.path.dirname(path))
        except OSError:
            return f"{quote(path)} is closed to you: ask the administrator of this host, or use sudo"
    if not status.st_gid or not status.st_mode & 0o060:
        return f"only root may use {quote(path)}: run spliffctl with sudo"
    try:
        group = grp.getgrgid(status.st_gid)
    except KeyError:
        return f"only group {status.st_gid}, which has no name here, may use {quote(path)}: use sudo"
    try:
        user = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        user = ""
    name = quote(group.gr_name)
    if user in group.gr_mem:
        return f"you are in group {name}, but this session began before that: log in again"
    return f"you are not in group {name}: sudo usermod -aG {name} $USER, then log in again"


def _target(path: str) -> str:
    from urllib.parse import quote as percent_quote

    return "unix:" + percent_quote(path)


def _quiet_grpc() -> None:
    """Keeps gRPC's own log lines off the operator's terminal; errors come as exceptions anyway."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")


Metadata = tuple[tuple[str, str], ...]


def call(path: str, question: Callable[[SpliffStub], Result]) -> Result:
    """Asks the daemon one question: ``call(path, lambda stub: stub.GetInfo(..., timeout=...))``.

    Somebody who may not use the group's socket asks on the one for everybody, where there is one.
    """
    place, metadata = way(path)
    with channel(place) as opened, explained():
        from spliffd.pb.spliff_pb2_grpc import SpliffStub

        return question(SpliffStub(_bearing(opened, metadata) if metadata else opened))


def way(path: str) -> tuple[str, Metadata]:
    """The socket that this user may use, and the metadata that it takes.

    That is ``path``, or else the socket for everybody's own processes with a token; ``path`` may be that one
    itself. Raises what keeps this user from the first when there is no second.
    """
    if beside := _group_socket(path):
        try_socket(path)
        return path, bearer(beside)
    try:
        try_socket(path)
    except NotPermittedError:
        try:
            try_socket(user_socket(path))
        except ClientError:
            pass
        else:
            return user_socket(path), bearer(path)
        raise
    return path, ()


def bearer(path: str) -> Metadata:
    """The metadata that proves who runs this process; nothing where a certificate does."""
    if isinstance(path, Remote):
        return ()
    return (("authorization", f"Bearer {token(path)}"),)


def _bearing(opened: grpc.Channel, metadata: Metadata) -> grpc.Channel:
    """The channel, with ``metadata`` on every call of one answer."""
    import grpc

    class Bearing(grpc.UnaryUnaryClientInterceptor):  # type: ignore[misc,unused-ignore]  # grpc has no types
        def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
            return continuation(_Details(details.method, details.timeout, metadata), request)

    return grpc.intercept_channel(opened, Bearing())


class _Details(NamedTuple):
    """grpc.ClientCallDetails."""

    method: str
    timeout: float | None
    metadata: Metadata
    credentials: Any = None
    wait_for_ready: bool | None = None
    compression: Any = None


def channel(path: str) -> grpc.Channel:
    """A channel for questions."""
    _quiet_grpc()
    import grpc

    if isinstance(path, Remote):
        return grpc.secure_channel(path, path.credentials(), options=path.options())
    return grpc.insecure_channel(_target(path), options=_OPTIONS)


def auth_socket(path: str) -> str:
    """Where the daemon at ``path`` issues tokens: auth.sock beside spliffd.sock, else PATH.auth."""
    folder, name = os.path.split(path)
    return os.path.join(folder, "auth.sock") if name == os.path.basename(DEFAULT_SOCKET) else f"{path}.auth"


def user_socket(path: str) -> str:
    """Where everybody may watch their own processes: user.sock beside spliffd.sock, else PATH.user."""
    folder, name = os.path.split(path)
    return os.path.join(folder, "user.sock") if name == os.path.basename(DEFAULT_SOCKET) else f"{path}.user"


def _group_socket(path: str) -> str:
    """The daemon's main socket where ``path`` is the one for everybody; else ""."""
    if isinstance(path, Remote):
        return ""
    folder, name = os.path.split(path)
    if name == "user.sock":
        return os.path.join(folder, os.path.basename(DEFAULT_SOCKET))
    return path[: -len(".user")] if name.endswith(".user") else ""


def token(path: str) -> str:
    """A short-lived token that proves to the daemon at ``path`` who runs this process."""
    if isinstance(path, Remote):
        raise RefusedError("to a remote daemon your certificate is the proof: it takes no tokens")
    place = auth_socket(path)
    try_socket(place)
    with channel(place) as opened, explained():
        from spliffd.pb import spliff_pb2
        from spliffd.pb.spliff_pb2_grpc import AuthStub

        answer = AuthStub(opened).GetToken(spliff_pb2.GetTokenRequest(), timeout=CALL_TIMEOUT_S)
        return answer.token


def stream(path: str, request: pb.WatchRequest) -> Iterator[Any]:
    """The items of a watch that ends by itself, batch by batch."""
    place, metadata = way(path)
    with channel(place) as opened, explained():
        from spliffd.pb.spliff_pb2_grpc import SpliffStub

        for response in SpliffStub(opened).Watch(request, metadata=metadata or None):
            yield response.items


def streaming_channel(path: str) -> grpc.aio.Channel:
    """A channel for ``Watch``; to be used inside a running event loop."""
    _quiet_grpc()
    import grpc.aio

    if isinstance(path, Remote):
        return grpc.aio.secure_channel(path, path.credentials(), options=path.options())
    return grpc.aio.insecure_channel(_target(path), options=_OPTIONS)


def serving(path: str) -> None:
    """Returns when the daemon says SERVING (grpc.health.v1), else raises why not.

    Speaks the health protocol by hand: an empty request, and a response whose field 1 is the status
    (1 is SERVING), so that the client needs no further package for it.
    """
    try_socket(path)
    with channel(path) as opened, explained():
        check: Any = opened.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=lambda request: request,
            response_deserializer=lambda response: response,
        )
        answer: bytes = check(b"", timeout=CALL_TIMEOUT_S)
    if answer != b"\x08\x01":
        raise UnavailableError("spliffd runs but does not serve yet: see systemctl status spliffd")


@contextmanager
def explained() -> Iterator[None]:
    """Turns errors of gRPC into ClientErrors."""
    import grpc

    try:
        yield
    except grpc.RpcError as error:
        raise explain(error) from None


def explain(error: Any) -> ClientError:
    """What an error of gRPC means, and what to do. ``error`` has ``code()`` and ``details()``."""
    import grpc

    code = error.code()
    details = quote(error.details() or "")
    if code in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED):
        return NotPermittedError(f"spliffd refuses: {details or 'no reason given'}")
    if code == grpc.StatusCode.FAILED_PRECONDITION:
        return PreconditionError(f"spliffd cannot do that: {details}")
    if code == grpc.StatusCode.NOT_FOUND:
        return RefusedError(f"spliffd does not have that: {details}")
    if code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.OUT_OF_RANGE):
        return RefusedError(f"spliffd does not take these arguments: {details}")
    if code == grpc.StatusCode.UNIMPLEMENTED:
        return UnavailableError(
            "this spliffd does not know that command: upgrade it to the version of spliffctl "
            "(compare: spliffctl status, spliffctl --version)"
        )
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return UnavailableError(
            f"spliffd did not answer within {CALL_TIMEOUT_S:.0f} s: see systemctl status spliffd"
        )
    if code == grpc.StatusCode.RESOURCE_EXHAUSTED:
        return UnavailableError(f"spliffd has no room for another watcher or answer: {details}")
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.ABORTED):
        return UnavailableError(
            f"spliffd stopped or was restarted, the connection to it broke ({details or 'no reason given'}): "
            "see systemctl status spliffd, then run the command again"
        )
    return UnavailableError(f"spliffd failed to answer ({code.name}: {details}): see journalctl -u spliffd")
