"""What is known of a TLS connection beside its bytes: process, addresses, socket, TLS session.

A plain record that the engine fills in as evidence arrives, and from which ``worker.encode`` makes the
constant part of every exchange. Unknown is "" or 0, never a guess.
"""

from __future__ import annotations


class ConnectionFacts:
    """Facts of one connection. Whoever changes one sets ``prefix`` to None: it caches their encoding.

    What changes with every packet (interface, path, counts) has a cache of its own, ``traffic``.
    """

    __slots__ = (
        "alpn",
        "alpn_settled",
        "ancestors",
        "bytes_received",
        "bytes_sent",
        "cgroup",
        "cipher",
        "cmdline",
        "comm",
        "confidence",
        "container_id",
        "correlation_method",
        "exe",
        "family",
        "from_start",
        "handshake_ns",
        "handshake_told",
        "hello_of",
        "interface",
        "ja4",
        "library",
        "local_address",
        "local_port",
        "netns_cookie",
        "packets_received",
        "packets_sent",
        "path",
        "pid",
        "ppid",
        "prefix",
        "process_start_ns",
        "proved",
        "remote_address",
        "remote_port",
        "resumed",
        "role",
        "shaking_ns",
        "sni",
        "socket_cookie",
        "tid",
        "tls_version",
        "told",
        "traffic",
        "uid",
        "unit",
        "user",
        "wire",
    )

    def __init__(self) -> None:
        self.prefix: bytes | None = None
        self.told = b""
        """What filters are told of the connection, encoded; made together with ``prefix``."""
        self.traffic: bytes | None = None
        # process
        self.pid = self.tid = self.ppid = self.uid = 0
        self.ancestors: list[int] = []
        """Processes above this one, the nearest first."""
        self.process_start_ns = 0
        """Since the epoch."""
        self.comm = self.exe = self.cmdline = self.user = self.cgroup = self.unit = ""
        self.container_id = ""
        # connection
        self.local_address = self.remote_address = ""
        self.local_port = self.remote_port = 0
        self.from_start = False
        """Whether it was seen from its handshake on."""
        self.proved = False
        """Whether the TLS records on the wire hold just the plaintext that was captured so far."""
        self.role = self.family = self.interface = ""
        self.netns_cookie = self.socket_cookie = 0
        self.packets_sent = self.packets_received = self.bytes_sent = self.bytes_received = 0
        self.path: list[tuple[str, str, int]] = []
        """Interfaces on the way: (interface, hook, packets)."""
        # correlation
        self.wire = ""
        """XDP or TC: the hook that saw its packets first; "" while none is known to have."""
        self.correlation_method = self.confidence = ""
        # TLS session
        self.library = self.tls_version = self.cipher = self.alpn = self.sni = self.ja4 = ""
        self.handshake_ns = 0
        self.resumed: bool | None = None
        self.alpn_settled = False
        """No more will be known of ALPN: it was answered in the clear, or nobody asked."""
        self.hello_of = 0
        """The socket whose first packets these facts were taken from; 0: none yet."""
        self.handshake_told = False
        self.shaking_ns = 0
        """When a handshake began (ktime) whose end was not seen yet; 0: none."""
