"""Configuration: a TOML file and the command line become one frozen ``Config``.

Takes the text of ``/etc/spliff/spliffd.toml`` (every key optional) and the options of the command
line; returns ``Config``. An unknown key, a wrong type or a value out of bounds raises ``UsageError``
that names the key. Never touches the host: whether a cgroup exists is found out when it is opened.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import msgspec

from spliffd.counters import MAX_WORKERS
from spliffd.errors import UsageError

DEFAULT_PATH = Path("/etc/spliff/spliffd.toml")
DEFAULT_SOCKET = Path("/run/spliff/spliffd.sock")

MAX_UNWATCHED_RATE = 1_000_000
"""No host has more exchanges a second; the programs count with it."""

INTERFACE_MODES = ("auto", "tc", "clsact", "xdp", "xdp-generic", "off")


class Scope(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What may be captured at all; empty means the whole host. Enforced in the kernel."""

    cgroups: list[str] = []
    """Directories of cgroup v2; processes in them and below them are in scope."""
    users: list[str] = []
    """User names or ids."""
    paths: list[str] = []
    """Globs of library and executable paths that may be probed."""
    exclude_cgroups: list[str] = []
    """Directories of cgroup v2 that are out of scope, whatever the others say."""
    exclude_users: list[str] = []
    """User names or ids that are out of scope."""
    exclude_paths: list[str] = []
    """Globs of libraries and executables that are never probed."""

    def is_empty(self) -> bool:
        """Whether the whole host is in scope."""
        return self == Scope()


class Capture(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What is done on the kernel's side."""

    unwatched: str = "metrics"
    """What happens while nobody watches: "metrics" goes on counting, "off" captures nothing."""
    unwatched_rate: int = 500
    """Exchanges a second of connections that nobody watches, for the metrics: while there are more, whole
    connections are left out of all metrics but `spliff_unsampled_*`, and cost the traced programs less.
    0: none ever is."""
    ring_mib: int = 16
    """Size of one worker's ring; a power of two. 16 MiB hold 4,000 small exchanges, or 30 ms of 500 MiB/s."""
    body_ring_mib: int = 128
    """Size of that ring while somebody watches bodies (ring_mib, if that is more); a power of two. 128 MiB
    hold a 64 MiB transfer seen at both ends, however fast it comes."""
    workers: int = 1
    """Worker processes, each with a ring of its own."""
    nice: int = -10
    """Priority of the workers and of the supervisor (-20 to 19; the api gets half of it): what a worker
    cannot read in time is lost, a library that is not probed within milliseconds has been used, and a traced
    program at the machine's limit would take the processor time that this needs."""
    relocate: bool = True
    """Move probes to cheaper instructions where that is proved safe."""
    socket_observation: bool = True
    """Name sockets by socket operations inside the TLS call."""
    sock_ops: bool = True
    """Keep the cookie map through sock_ops."""


class Interfaces(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """On which network interfaces packets are counted and tied to exchanges. Takes effect on reload."""

    include: list[str] = []
    """Globs of interface names that get a packet hook; empty means all."""
    exclude: list[str] = []
    """Globs of interface names that get none, whatever `include` says."""
    mode: str = "auto"
    """"auto": native XDP on hardware whose driver takes it, TC elsewhere. "tc": TC everywhere (TCX links,
    else clsact filters). "clsact": TC by classic filters only; they attach faster, but stay behind a killed
    daemon until the next start. "xdp": native XDP wherever a driver takes it. "xdp-generic": XDP in the
    kernel's generic form, which slows the host. "off": no packet hooks. Attaching native XDP makes some
    drivers reset their link for a moment; it is done once, and never over another program."""


class Access(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Who may ask."""

    user: str = "spliff"
    """The user that worker and api run as."""
    group: str = "spliff"
    """The group whose members may use the socket."""
    queue_mib: int = 256
    """Most that one watcher may have queued before bodies, then exchanges, are shed; only watchers of bodies
    ask for more than 16 MiB. 192 MiB of it may be bodies: a 64 MiB download seen at both ends, with room."""
    users: str = "none"
    """"own": any local user may watch what their own processes say, on user.sock beside the socket of the
    group. The kernel says who they are; they learn nothing of other users' processes. "none": there is no
    such socket."""
    watchers: int = 64
    """Watchers at a time, of everything; as many again may watch own processes. With the default queue 64
    can hold 1 GiB at worst."""
    reveal_group: str = ""
    """The group whose members (and root) get secrets unmasked when they ask (`spliffctl watch --reveal`);
    each time is a line in the journal. Empty: nobody does."""
    mask_headers: tuple[str, ...] = (
        "authorization",
        "proxy-authorization",
        "cookie",
        "set-cookie",
        "x-api-key",
    )
    """Headers whose values are masked."""
    mask_fields: tuple[str, ...] = (
        "password",
        "passwd",
        "pwd",
        "passphrase",
        "secret",
        "token",
        "access_token",
        "refresh_token",
        "id_token",
        "auth_token",
        "api_token",
        "session_token",
        "csrf_token",
        "x_api_key",
        "api_key",
        "access_key",
        "secret_key",
        "secret_access_key",
        "private_key",
        "client_secret",
        "client_assertion",
        "credential",
        "credentials",
        "authorization",
        "jwt",
        "otp",
        "session_id",
        "jsessionid",
        "phpsessid",
        "sid",
        "sig",
        "signature",
        "x_amz_credential",
        "x_amz_security_token",
        "x_amz_signature",
    )
    """Fields of queries, forms and JSON whose values are masked, whatever their case and whether their words
    are joined by "_", "-" or nothing: access_token is also accessToken."""
    mask_bodies: str = "known"
    """"known": fields of JSON, forms and multipart forms are masked, also compressed ones; other bodies are
    shown as they are. "all": bodies are shown to nobody but those who may see secrets."""


class Tls(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A TCP listener for clients on other hosts, who prove by certificates who they are. Off by default."""

    listen: str = ""
    """ADDR:PORT, for example 192.0.2.1:9470; empty: there is none. Never without client certificates."""
    certificate: str = ""
    """The daemon's certificate, with the intermediate ones, as PEM."""
    key: str = ""
    """Its private key, as PEM; read before the api gives up root, so it may be closed to everybody else."""
    client_ca: str = ""
    """The authorities that may have signed clients' certificates, as PEM: one of your own, not a public
    one."""
    watch: list[str] = []
    """Who may watch everything, secrets masked: names in the certificate (common or alternative), as they
    are."""
    reveal: list[str] = []
    """Who may also see secrets, when they ask, and switch the debug log; each time is a line in the
    journal."""


class History(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What is kept of exchanges for watchers that come later; secrets in it are masked.

    While nobody watches it is filled only if `[capture] unwatched` is "metrics", and with what
    `unwatched_rate` lets through.
    """

    memory_mib: int = 8
    """Memory for it; it grows as exchanges come. 8 MiB hold some 5,000 exchanges without bodies: minutes of a
    busy service, hours of a quiet one. 0: nothing is kept, and the daemon does less while nobody watches."""
    exchanges: int = 10_000
    """Most exchanges that are kept in memory, however small they are: a watcher gets them in a tenth of a
    second."""
    body_limit: int = 0
    """Most bytes that are kept of each body. Bodies cost more than all the rest: with a limit above 0 the
    rings have the size of body_ring_mib all the time."""
    path: str = ""
    """A file (SQLite) that keeps more, across restarts, in a folder of its own: the packaged unit allows
    /var/lib/spliff/history/history.db. Empty: memory only."""
    file_mib: int = 1024
    """Size of that file, about: some 700,000 exchanges without bodies. The oldest give way."""
    hours: int = 168
    """How long the file keeps an exchange: a week, until somebody looks into what happened on Friday."""


class Metrics(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The Prometheus endpoint."""

    listen: str = "127.0.0.1:9469"
    """ADDR:PORT, or "off"."""


class Config(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """All settings of a run."""

    socket: str = str(DEFAULT_SOCKET)
    debug: bool = False
    scope: Scope = Scope()
    capture: Capture = Capture()
    interfaces: Interfaces = Interfaces()
    access: Access = Access()
    history: History = History()
    tls: Tls = Tls()
    metrics: Metrics = Metrics()


def auth_socket(path: str) -> str:
    """Where tokens are issued, beside the socket ``path``: auth.sock beside spliffd.sock, else PATH.auth."""
    folder, name = os.path.split(path)
    return os.path.join(folder, "auth.sock") if name == DEFAULT_SOCKET.name else f"{path}.auth"


def user_socket(path: str) -> str:
    """The socket for everybody, beside the socket ``path``: user.sock beside spliffd.sock, else PATH.user."""
    folder, name = os.path.split(path)
    return os.path.join(folder, "user.sock") if name == DEFAULT_SOCKET.name else f"{path}.user"


def parse(text: str, source: str) -> Config:
    """Reads TOML ``text``; ``source`` names the file in errors. Raises UsageError."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{source}: not valid TOML: {error}", "mend the line it names") from None
    try:
        config = msgspec.convert(raw, Config)
    except msgspec.ValidationError as error:
        raise UsageError(
            f"{source}: {error}", "`spliffd config show` prints every key with its default"
        ) from None
    return check(config, source)


def load(path: Path | None) -> Config:
    """Reads ``path``; the default path may be absent, a path that was asked for may not."""
    wanted = path or DEFAULT_PATH
    try:
        text = wanted.read_text(encoding="utf-8")
    except FileNotFoundError:
        if path is None:
            return Config()
        raise UsageError(f"{wanted}: no such file", "check --config") from None
    except OSError as error:
        raise UsageError(
            f"{wanted}: cannot be read: {error.strerror}", "make it a file that root may read"
        ) from None
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{wanted}: not UTF-8 text, from byte {error.start} on", "save it as UTF-8, as TOML demands"
        ) from None
    return parse(text, str(wanted))


def check(config: Config, source: str) -> Config:
    """Checks values that types alone do not; returns ``config`` or raises UsageError."""
    capture = config.capture
    if capture.unwatched not in ("metrics", "off"):
        raise UsageError(f'{source}: capture.unwatched is "{capture.unwatched}"', 'use "metrics" or "off"')
    if not 0 <= capture.unwatched_rate <= MAX_UNWATCHED_RATE:
        raise UsageError(
            f"{source}: capture.unwatched_rate is {capture.unwatched_rate}",
            f"use 0 (never leave any out) to {MAX_UNWATCHED_RATE}",
        )
    if capture.ring_mib not in (1, 2, 4, 8, 16, 32, 64, 128, 256):
        raise UsageError(
            f"{source}: capture.ring_mib is {capture.ring_mib}", "use a power of two from 1 to 256"
        )
    if capture.body_ring_mib not in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512):
        raise UsageError(
            f"{source}: capture.body_ring_mib is {capture.body_ring_mib}", "use a power of two from 1 to 512"
        )
    if not 1 <= capture.workers <= MAX_WORKERS:
        raise UsageError(f"{source}: capture.workers is {capture.workers}", f"use 1 to {MAX_WORKERS}")
    if not -20 <= capture.nice <= 19:
        raise UsageError(f"{source}: capture.nice is {capture.nice}", "use -20 to 19")
    if config.interfaces.mode not in INTERFACE_MODES:
        raise UsageError(
            f'{source}: interfaces.mode is "{config.interfaces.mode}"',
            f"use one of {', '.join(INTERFACE_MODES)}",
        )
    if config.access.mask_bodies not in ("known", "all"):
        raise UsageError(
            f'{source}: access.mask_bodies is "{config.access.mask_bodies}"', 'use "known" or "all"'
        )
    for name in (*config.access.mask_headers, *config.access.mask_fields):
        if not name.isascii() or not name.replace("-", "").replace("_", "").isalnum():
            raise UsageError(
                f'{source}: access.mask_headers and access.mask_fields: "{name}" is no name',
                "use names of letters, digits, - and _",
            )
    if config.access.users not in ("none", "own"):
        raise UsageError(f'{source}: access.users is "{config.access.users}"', 'use "none" or "own"')
    if not 1 <= config.access.watchers <= 1024:
        raise UsageError(f"{source}: access.watchers is {config.access.watchers}", "use 1 to 1024")
    if not 1 <= config.access.queue_mib <= 1024:
        raise UsageError(f"{source}: access.queue_mib is {config.access.queue_mib}", "use 1 to 1024")
    _check_history(config.history, source)
    _check_tls(config.tls, source)
    if config.metrics.listen != "off":
        parse_address(config.metrics.listen, source)
    return config


def _check_history(history: History, source: str) -> None:
    for name, value, first, last in (
        ("memory_mib", history.memory_mib, 0, 1024),
        ("exchanges", history.exchanges, 1, 10_000_000),
        ("body_limit", history.body_limit, 0, 1 << 20),
        ("file_mib", history.file_mib, 1, 1 << 20),
        ("hours", history.hours, 1, 24 * 3650),
    ):
        if not first <= value <= last:
            raise UsageError(f"{source}: history.{name} is {value}", f"use {first} to {last}")
    if history.path and not (os.path.isabs(history.path) and history.memory_mib):
        raise UsageError(
            f'{source}: history.path is "{history.path}"',
            "use an absolute path, and a memory_mib above 0: the file is written from memory",
        )


def _check_tls(tls: Tls, source: str) -> None:
    if tls == Tls():
        return
    parse_address(tls.listen, source, "tls.listen")
    for name, path in (("certificate", tls.certificate), ("key", tls.key), ("client_ca", tls.client_ca)):
        if not os.path.isabs(path):
            raise UsageError(f'{source}: tls.{name} is "{path}"', "use the absolute path of a PEM file")
    if not (tls.watch or tls.reveal):
        raise UsageError(
            f"{source}: tls.watch and tls.reveal are empty", "name who may watch, as their certificates do"
        )


def parse_address(text: str, source: str, key: str = "metrics.listen") -> tuple[str, int]:
    """Splits ADDR:PORT ([ADDR]:PORT for IPv6); ``key`` names it in errors. Raises UsageError."""
    host, _, port = text.rpartition(":")
    host = host.strip("[]")
    if not host or not (port.isascii() and port.isdigit()) or int(port[:6]) > 65535:
        raise UsageError(
            f'{source}: {key} is "{text}"',
            'use ADDR:PORT such as 127.0.0.1:9469, or "off"'
            if key == "metrics.listen"
            else "use ADDR:PORT such as 192.0.2.1:9470",
        )
    return host, int(port)


def show(config: Config) -> str:
    """The whole configuration as TOML, defaults included."""
    data = msgspec.to_builtins(config)
    lines = [f"{key} = {_toml(value)}" for key, value in data.items() if not isinstance(value, dict)]
    for table, values in data.items():
        if isinstance(values, dict):
            lines += ["", f"[{table}]"]
            lines += [f"{key} = {_toml(value)}" for key, value in values.items()]
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    # Strings, integers and lists of strings are written alike in JSON and TOML, but for DEL.
    return msgspec.json.encode(value).decode().replace("\x7f", "\\u007F")
