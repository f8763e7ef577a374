"""What the tests in the virtual machine share: commands, systemd's own words, watchers, a TLS server, figures.

The machine is thrown away after the run, so nothing here cleans up for others' sake, and the daemon watches the
whole of it: it is the one place where spliff is tested as it is installed. Only the standard library: the
package's own environment comes and goes.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

SHARE = Path("/vm")
FIGURES = Path(os.environ.get("SPLIFF_FIGURES", SHARE / "figures.jsonl"))
WHOLE = bool(os.environ.get("WHOLE"))
"""Whether counts are those of the documentation; else smaller ones, for a kernel that is not the first of a run."""
UNIT = "spliffd.service"
PYTHON = "/opt/spliff/bin/python3"
DAEMON_PATTERNS = {
    "supervisor": "/opt/spliff/bin/spliffd",
    "worker": "spliffd: worker 0",
    "api": "spliffd: api",
    "inspector": "spliffd.targets.inspector",
}


POLL_SECONDS = 0.2
"""Asking costs the one processor that what is waited for needs, too: systemctl takes 0.2 s of it."""


def run(*command: str | Path, code: int | None = 0, text: str | None = None, seconds: float = 900) -> str:
    """Runs a command to its end; its output, and its errors when it ends with another code."""
    done = subprocess.run(
        [*map(str, command)], input=text, capture_output=True, text=True, timeout=seconds, check=False
    )
    assert code is None or done.returncode == code, (
        f"{' '.join(map(str, command))}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    )
    return done.stdout


def sh(script: str, code: int | None = 0, seconds: float = 900) -> str:
    """Runs a shell script that stops at the first error."""
    return run("sh", "-euc", script, code=code, seconds=seconds)


def show(name: str) -> str:
    """A property of the unit, as systemd has it."""
    return run("systemctl", "show", UNIT, "--property", name, "--value").strip()


def wait_for(
    condition: Callable[[], object], seconds: float, what: str, every: float = POLL_SECONDS
) -> float:
    """Polls until ``condition()`` holds; returns how long that took."""
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < seconds, f"{what}: not within {seconds} s\n{journal()[-3000:]}"
        time.sleep(every)
    return time.monotonic() - begun


def is_ready() -> bool:
    """Whether systemd was told READY=1 and the daemon runs."""
    return show("ActiveState") == "active"


def journal(*options: str) -> str:
    """What the service has said, without the statistics block that ends each run."""
    return run("journalctl", "--no-pager", "--output=cat", f"--unit={UNIT}", *options)


def now() -> str:
    """A moment for ``journal("--since", …)``."""
    return f"@{time.time():.3f}"


def trouble(since: str) -> list[str]:
    """Warnings and errors of the service since then, with their fields."""
    told = run(
        "journalctl", "--no-pager", "--output=json", f"--unit={UNIT}", "--boot",
        "--since", since, "--priority=warning",
    )  # fmt: skip
    return [
        " ".join(
            [entry["MESSAGE"], *(f"{name}={entry[name]}" for name in entry if name.startswith("SPLIFF_"))]
        )
        for entry in map(json.loads, told.splitlines())
    ]


def pid_of(part: str) -> int:
    """Process id of ``supervisor``, ``worker``, ``api`` or ``inspector``; 0 when there is none."""
    if part == "supervisor":
        return int(show("MainPID"))
    wanted = DAEMON_PATTERNS[part]
    group = Path("/sys/fs/cgroup/system.slice") / UNIT / "cgroup.procs"
    with contextlib.suppress(OSError):
        for pid in group.read_text().split():
            with contextlib.suppress(OSError):
                if wanted in Path(f"/proc/{pid}/cmdline").read_bytes().decode():
                    return int(pid)
    return 0


record: Callable[[str, object], None] | None = None
"""Of the running test's place in the JUnit file."""


def figure(subject: str, text: str) -> None:
    """A result with its figure, for the transcript, JUnit and the table in the documentation."""
    if FIGURES.parent.is_dir():
        with FIGURES.open("a") as file:
            file.write(json.dumps({"kernel": os.uname().release, "subject": subject, "text": text}) + "\n")
    if record is not None:
        record(subject, text)
    print(f"{subject}: {text}", file=sys.stderr, flush=True)


def doctor_figures(told: str, *names: str) -> None:
    """What `spliffd doctor` says of these."""
    text = re.sub(r"\n {25}(?!->)", " ", told)
    for name in names:
        found = re.search(rf"^(?:ok|degraded) +{name} +(.+)$", text, re.MULTILINE)
        assert found, told
        figure(f"doctor: {name}", " ".join(found[1].split()))


def metric(name: str) -> float:
    """A number of the Prometheus endpoint: the cheapest way to ask."""
    with urllib.request.urlopen("http://127.0.0.1:9469/metrics", timeout=20) as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[1])
    raise KeyError(name)


class Watch:
    """`spliffctl watch -o json` in the background."""

    _made = 0

    def __init__(self, *options: str, user: str = "root") -> None:
        Watch._made += 1
        self._file = Path(f"/tmp/watch-{Watch._made}.json")
        self._errors = self._file.with_suffix(".err")
        before = metric("spliff_subscribers_total")
        command = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"] if user != "root" else []
        with self._file.open("wb") as out, self._errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [*command, "spliffctl", "watch", "-o", "json", *options], stdout=out, stderr=errors
            )
        wait_for(lambda: self._started(before), 60, "spliffctl watches")

    def _started(self, before: float) -> bool:
        assert self.process.poll() is None, self._errors.read_text()
        return metric("spliff_subscribers_total") > before

    @property
    def errors(self) -> str:
        """What it said on standard error."""
        return self._errors.read_text()

    def exchanges(self, role: str = "client") -> list[dict]:
        """The exchanges so far of one end."""
        lines = self._file.read_text().split("\n")[:-1]
        found = [item["exchange"] for item in map(json.loads, lines) if "exchange" in item]
        return [one for one in found if one["connection"]["role"] == role]

    def wait(self, count: int, seconds: float = 120, role: str = "client") -> list[dict]:
        """Until ``count`` exchanges are there; returns them."""
        wait_for(lambda: len(self.exchanges(role)) >= count, seconds, f"{count} exchanges")
        return self.exchanges(role)

    def stop(self) -> None:
        """Ctrl-C."""
        self.process.send_signal(signal.SIGINT)
        self.process.wait(60)


@contextlib.contextmanager
def watching(*options: str, user: str = "root") -> Iterator[Watch]:
    """A watcher for as long as the block lasts."""
    made = Watch(*options, user=user)
    try:
        yield made
    finally:
        if made.process.poll() is None:
            made.stop()


NGINX = """\
daemon off; master_process off; user root; pid {folder}/pid; error_log {folder}/error.log;
events {{ }}
http {{
  access_log off; keepalive_requests 1000000;
  server {{
    listen 0.0.0.0:443 ssl;
    ssl_certificate {folder}/cert.pem; ssl_certificate_key {folder}/key.pem;
    location / {{ return 200 "hello\\n"; }}
  }}
}}
"""


def serve(name: str, *enter: str) -> subprocess.Popen[bytes]:
    """nginx on port 443, in the network namespace that ``enter`` enters."""
    folder = Path("/tmp") / f"nginx-{name}"
    folder.mkdir()
    run(
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=vm",
        "-keyout", folder / "key.pem", "-out", folder / "cert.pem", "-days", "2",
    )  # fmt: skip
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder))
    made = subprocess.Popen([*enter, "nginx", "-c", str(folder / "nginx.conf")])
    wait_for(lambda: "LISTEN" in run(*enter, "ss", "-Hltn", "sport = :443"), 60, "nginx")
    return made


def namespace(name: str) -> list[str]:
    """A new network namespace; the command that enters it."""
    run("ip", "netns", "add", name)
    run("ip", "-n", name, "link", "set", "lo", "up")
    return ["nsenter", f"--net=/run/netns/{name}"]


def fetch(url: str, *options: str, seconds: float = 120) -> tuple[int, str]:
    """One curl; its process id and what it said of each request: status and local port."""
    with subprocess.Popen(
        ["curl", "-sk", "-o", "/dev/null", "-w", "%{http_code} %{local_port}\n", *options, url],
        stdout=subprocess.PIPE,
    ) as made:
        out, _ = made.communicate(timeout=seconds)
    assert made.returncode == 0, (made.returncode, out)
    return made.pid, out.decode()


def on_wire(exchange: dict) -> tuple[str, str]:
    """Hook and interface that saw its packets."""
    return exchange["correlation"].get("wire", ""), exchange["connection"].get("interface", "")


BY_KERNEL = ("attach", "sockets", "flows", "older sockets", "packets")
"""Features whose way the kernel decides, by the name that doctor and status give them."""


def in_use_figures(features: Mapping[str, str]) -> None:
    """What the running daemon says of them; how many it has is not a matter of the kernel."""
    for name in BY_KERNEL:
        figure(f"in use: {name}", re.sub(r"^\d+ seeded", "seeded", features[name]))


def ways(exchanges: Sequence[dict]) -> str:
    """How they were correlated, in words."""
    found: dict[str, int] = {}
    for one in exchanges:
        hook, interface = on_wire(one)
        way = f"{one['correlation'].get('method', '?')}, {hook} {interface}"
        found[way] = found.get(way, 0) + 1
    return "; ".join(f"{count} {way}" for way, count in sorted(found.items()))
