"""WebSocket over real TLS in the lab: a server and a client of the websockets library, as programs.

They run the tests' own interpreter, whose ssl module takes the lab's private libssl. The server prints its port
and answers: text with the same text, binary with its length, ``burst N`` with N messages. The client gets a JSON
list of steps (``{"text": …}``, ``{"binary": bytes, "fragments": n}``, ``{"ping": …}``, ``{"close": [code, reason]}``)
and prints what it received.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from tests.support.lab import Lab

SERVER = r"""
import asyncio, json, ssl, sys
from websockets.asyncio.server import serve
from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1], sys.argv[2])

async def answer(socket):
    async for message in socket:
        if isinstance(message, bytes):
            await socket.send(str(len(message)))
        elif message.startswith("burst "):
            for number in range(int(message[6:])):
                await socket.send(json.dumps({"number": number, "text": "one of many"}))
        else:
            await socket.send(message)

async def main():
    compress = [ServerPerMessageDeflateFactory()] if sys.argv[3] == "deflate" else None
    async with serve(answer, "127.0.0.1", 0, ssl=context, compression=None, extensions=compress,
                     max_size=None, ping_interval=None) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await asyncio.Future()

asyncio.run(main())
"""

CLIENT = r"""
import asyncio, json, random, ssl, sys
from websockets.asyncio.client import connect
port, steps, keylog, compression = int(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3], sys.argv[4]
context = ssl.create_default_context()
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
if keylog:
    context.keylog_filename = keylog

async def main():
    received = []
    async with connect(f"wss://127.0.0.1:{port}/chat?token=S3CR3T-query", ssl=context, max_size=None, proxy=None,
                       compression="deflate" if compression == "deflate" else None, ping_interval=None) as socket:
        for step in steps:
            if "text" in step:
                await socket.send(step["text"] * step.get("times", 1))
                for _ in range(step.get("answers", 1)):
                    received.append(await socket.recv())
            elif "binary" in step:
                data = random.Random(step["seed"]).randbytes(step["binary"])
                count = step.get("fragments", 1)
                size = -(-len(data) // count)
                async def pieces():
                    for at in range(0, len(data), size):
                        yield data[at : at + size]
                await socket.send(pieces() if count > 1 else data)
                received.append(await socket.recv())
            elif "ping" in step:
                await (await socket.ping(step["ping"]))
            elif "close" in step:
                await socket.close(*step["close"])
    print(json.dumps(received))

asyncio.run(main())
"""


class WebSocketServer:
    """The server; ``port`` is where it listens."""

    def __init__(self, lab: Lab, *, deflate: bool = True) -> None:
        mode = "deflate" if deflate else "plain"
        self._process = lab.start(
            sys.executable, "-c", SERVER, lab.certificate, lab.key, mode, stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())


def websocket_client(
    lab: Lab, port: int, steps: list[dict[str, Any]], *, deflate: bool = True, keylog: str = ""
) -> list[str]:
    """Runs the client to its end; returns the messages that it received."""
    mode = "deflate" if deflate else "plain"
    done = lab.run(sys.executable, "-c", CLIENT, str(port), json.dumps(steps), keylog, mode)
    assert done.returncode == 0, done.stderr.decode()
    received: list[str] = json.loads(done.stdout)
    return received
