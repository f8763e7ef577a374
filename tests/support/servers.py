"""Real TLS servers in the lab: nginx, as its users run it."""

from __future__ import annotations

import contextlib
import random
import socket
import subprocess
from pathlib import Path

from tests.support.lab import Lab, wait_for
from tests.support.net import Namespace, inside

NGINX = """\
daemon off;
master_process {master};
worker_processes {workers};
user root;
pid {folder}/nginx.pid;
error_log {folder}/nginx-error.log;
events {{ worker_connections 4096; }}
http {{
  access_log {access_log};
  log_format spliff '$request_method $request_uri $status $body_bytes_sent $pid';
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  keepalive_requests 100000000;
  client_max_body_size 1g;
  {tls}
  server {{
    {listen}
    ssl_certificate {certificate};
    ssl_certificate_key {key};
    root {root};
    {location}
    location = /hello {{ return 200 "hello world\\n"; }}
    location = /missing {{ return 404 "no\\n"; }}
    location = /moved {{ return 302 https://localhost:{port}/hello; }}
    location = /empty {{ return 204; }}
    location = /nginx-status {{ stub_status; }}
    location = /slow.bin {{ limit_rate 6000; try_files $uri =200; }}
    location / {{ try_files $uri =200; }}
  }}
}}
"""


PORTS = range(20_000, 32_768)
"""Below Linux's net.ipv4.ip_local_port_range: no connection that somebody opens meanwhile gets one of these."""


def free_port() -> int:
    """A TCP port that nobody listens on right now."""
    for port in random.sample(PORTS, 100):
        with contextlib.suppress(OSError):  # taken
            socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True).close()
            return port
    raise RuntimeError(f"a hundred ports of {PORTS} are taken")


class Nginx:
    """nginx with the lab's certificate; ``root`` holds what it serves, ``/hello`` and others are fixed.

    With ``namespace`` it listens there; ``mapped`` makes IPv4 clients arrive as ::ffff:a.b.c.d on one socket.
    """

    def __init__(
        self,
        lab: Lab,
        *,
        address: str = "127.0.0.1",
        workers: int = 0,
        log: bool = False,
        tls: str = "",
        namespace: Namespace | None = None,
        port: int = 0,
        mapped: bool = False,
        http2: bool = False,
        location: str = "",
    ) -> None:
        self.port = port or free_port()
        self.address = address
        self._namespace = namespace
        where = f"-{namespace.name}" if namespace else ""
        self.root = lab.folder / f"www-{self.port}{where}"
        self.root.mkdir()
        folder = self.root.with_name(self.root.name.replace("www", "nginx"))
        folder.mkdir()
        self.access_log = folder / "access.log"
        speaks = " http2" if http2 else ""
        text = NGINX.format(
            master="on" if workers else "off",
            workers=workers or 1,
            folder=folder,
            port=self.port,
            listen=f"listen [::]:{self.port} ssl ipv6only=off;"
            if mapped
            else f"listen {address}:{self.port} ssl{speaks}; listen [::]:{self.port} ssl{speaks} ipv6only=on;",
            certificate=lab.certificate,
            key=lab.key,
            root=self.root,
            tls=tls,
            location=location,
            access_log=f"{self.access_log} spliff" if log else "off",
        )
        configuration = folder / "nginx.conf"
        configuration.write_text(text)
        command: list[str | Path] = ["nginx", "-c", configuration, "-p", folder]
        if namespace:
            command = [*namespace.enter(*command)]
        self.process = lab.start(*command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        wait_for(self._answers, 30, "nginx")

    @property
    def pid(self) -> int:
        """Process id (without workers there is only one process)."""
        return self.process.pid

    def url(self, path: str = "/hello", host: str = "") -> str:
        """A URL of this server; ``host`` is another of its addresses."""
        host = host or self.address
        return f"https://{f'[{host}]' if ':' in host else host}:{self.port}{path}"

    def file(self, name: str, content: bytes) -> Path:
        """Puts a file where it is served."""
        path = self.root / name
        path.write_bytes(content)
        return path

    def _answers(self) -> bool:
        where = inside(self._namespace) if self._namespace else contextlib.nullcontext()
        with where, socket.socket() as probe:
            probe.settimeout(1)
            return probe.connect_ex((self.address, self.port)) == 0
