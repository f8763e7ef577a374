"""Many short-lived clients, each a fresh process, with a record of which pid asked for what."""

from __future__ import annotations

import json

from tests.support.lab import PYTHON, Lab
from tests.support.net import Namespace

RUNNER = r"""
import json, subprocess, sys
spec = json.loads(sys.argv[1])
running, done = [], []
def reap(limit):
    while len(running) > limit:
        number, process = running.pop(0)
        out = process.communicate()[0].decode()
        done.append((number, process.pid, process.returncode, out))
for number in range(spec["count"]):
    command = [part.replace("{n}", str(number)) for part in spec["command"]]
    running.append((number, subprocess.Popen(command, stdout=subprocess.PIPE)))
    reap(spec["parallel"] - 1)
reap(0)
json.dump(done, sys.stdout)
"""

FRESH_PYTHON = """
import http.client, socket, ssl, sys
connection = http.client.HTTPSConnection(sys.argv[1], int(sys.argv[2]), context=ssl._create_unverified_context())
connection.request("GET", sys.argv[3])
response = connection.getresponse()
response.read()
print(int.from_bytes(connection.sock.getsockopt(socket.SOL_SOCKET, 57, 8), "little"),
      connection.sock.getsockname()[1], response.status)
"""


def swarm(
    lab: Lab, count: int, command: list[str], parallel: int = 4, namespace: Namespace | None = None
) -> dict[int, tuple[int, str]]:
    """Runs ``command`` ``count`` times ("{n}" is the number); returns number -> (pid, output)."""
    spec = json.dumps({"count": count, "command": command, "parallel": parallel})
    runner = [PYTHON, "-c", RUNNER, spec]
    done = lab.run(*(namespace.enter(*runner) if namespace else runner), timeout=300)
    assert done.returncode == 0, done.stderr.decode()
    results = json.loads(done.stdout)
    assert all(code == 0 for _, _, code, _ in results), [r for r in results if r[2]][:3]
    return {number: (pid, out) for number, pid, _, out in results}
