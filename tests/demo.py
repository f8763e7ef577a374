"""``make demo``: the main job, in a minute, on a stage of its own.

Starts spliffd scoped to a cgroup and to private copies of the TLS library, then a real nginx, then real
clients (curl, python), and shows what `spliffctl watch` says of them, then the statistics. Nothing else
on the host is looked at, and everything is taken down again.
"""

from __future__ import annotations

import subprocess
import sys
import time

from tests.support.daemon import Daemon
from tests.support.lab import PYTHON, Lab, say, stop
from tests.support.servers import Nginx

PYTHON_CLIENT = """
import http.client, ssl, sys
connection = http.client.HTTPSConnection("localhost", int(sys.argv[1]), context=ssl._create_unverified_context())
for i in range(2):
    connection.request("POST", "/hello", body='{"order": %d}' % i, headers={"Content-Type": "application/json"})
    connection.getresponse().read()
"""


def main() -> int:
    """Runs the demonstration; 0 when every exchange was seen."""
    with Lab("demo") as lab:
        say(f"== a stage of its own: {lab.cgroup}, private copies of OpenSSL in {lab.libraries}")
        daemon = Daemon(lab)
        say("== spliffd is ready; nginx starts")
        server = Nginx(lab)
        server.file("report.json", b'{"answer": 42}\n')
        output = lab.folder / "watch.txt"
        with output.open("wb") as file:
            watch = daemon.client(
                "watch", "-b", "-H", "--color", "never", stdout=file, stderr=subprocess.STDOUT
            )
            time.sleep(1.5)  # spliffctl's start; its stream is open by then
            for path in ("/hello", "/report.json", "/missing"):
                lab.run("curl", "-sk", server.url(path))
            lab.run(PYTHON, "-c", PYTHON_CLIENT, str(server.port))
            time.sleep(1)
            stop(watch)
        say("\n== what `spliffctl watch -b -H` showed: clients and server, as both ends are on this host\n")
        text = output.read_text()
        print(text, flush=True)
        for list_ in ("libraries", "interfaces"):
            say(f"== {list_}")
            print(daemon.client(list_).communicate()[0].decode(), flush=True)
        exchanges = int(
            sum(n for name, n in daemon.stats().items() if name.startswith("spliff_exchanges_total"))
        )
        log = daemon.stop()
        say("== the statistics block that spliffd prints when it stops\n")
        print(log[log.index("spliffd ", log.index("statistics") - 20) :], flush=True)
        expected = 2 * (3 + 2)
        say(f"== {exchanges} of {expected} exchanges seen, at both ends; the stage is taken down")
        return 0 if exchanges == expected else 1


if __name__ == "__main__":
    sys.exit(main())
