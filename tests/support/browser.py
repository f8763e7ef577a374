"""A browser's developer tools that open a HAR file: what their network panel then lists.

Chromium runs headless with a profile of its own and opens the developer tools' own page (they come with it,
``devtools://devtools/bundled``) as if that were a tab. There the panel is given the file the way its "Import HAR
file" gives it, over the DevTools protocol; what is read back comes from its list of requests. No page is
loaded and nothing is fetched.

Not part of set-up: a browser is large. Whoever has none (apt: chromium) sees the test skipped.
"""

from __future__ import annotations

import base64
import itertools
import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

from tests.support.lab import stop, wait_for

BROWSER = shutil.which("chromium")

PAGE = "devtools://devtools/bundled/devtools_app.html"
DEADLINE = 60.0
"""Seconds: a browser starts in two, and this machine may be busy."""

READY = "document.querySelector('.tabbed-pane, .root-view') !== null"

IMPORT = """(async () => {
  const ui = await import('./ui/legacy/legacy.js');
  const network = await import('./panels/network/network.js');
  const logs = await import('./models/logs/logs.js');
  await ui.ViewManager.ViewManager.instance().showView('network');
  const view = network.NetworkPanel.NetworkPanel.instance().networkLogView;
  const bytes = Uint8Array.from(atob('%s'), (c) => c.charCodeAt(0));
  await view.onLoadFromFile(new File([bytes], 'spliff.har'));
  const found = [];
  for (const request of logs.NetworkLog.NetworkLog.instance().requests()) {
    const content = await request.requestContentData();
    found.push({
      url: request.url(), method: request.requestMethod, status: request.statusCode,
      asked: await request.requestFormData(),
      answered: content.createdFromBase64 ? content.base64 : content.text,
      type: request.mimeType, protocol: request.protocol, address: request.remoteAddress(),
      headers: request.responseHeaders.map((one) => [one.name, one.value]),
    });
  }
  const rows = () => view.element.querySelectorAll('td.name-column').length;
  for (let tries = 0; tries < 300 && rows() < found.length; tries++) {
    await new Promise((resolve) => setTimeout(resolve, 100));  // it draws when it has time
  }
  return {found, rows: rows()};
})()"""


def imported(har: Path) -> list[dict[str, Any]]:
    """The requests that the network panel lists once it has imported the file, in its order."""
    assert BROWSER is not None
    with tempfile.TemporaryDirectory(prefix="spliff-browser-", ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [
                BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
                "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank",
            ],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            told = Path(profile) / "DevToolsActivePort"
            wait_for(lambda: told.exists() and len(told.read_text().split()) == 2, DEADLINE, "the browser")
            port, path = told.read_text().split()
            with connect(f"ws://127.0.0.1:{port}{path}", max_size=None, open_timeout=DEADLINE) as socket:
                return _import(_Protocol(socket), har.read_bytes())
        finally:
            stop(process, 20)


class _Protocol:
    """Calls of the DevTools protocol, one after the other."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._ids = itertools.count(1)

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """The result; raises when the browser says that there is none."""
        number = next(self._ids)
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        self._socket.send(json.dumps(message))
        while True:
            answer = json.loads(self._socket.recv(timeout=DEADLINE))
            if answer.get("id") == number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result

    def evaluate(self, session: str, expression: str) -> Any:
        """What JavaScript says in the page."""
        told = self.call(
            "Runtime.evaluate", session, expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")


def _import(protocol: _Protocol, har: bytes) -> list[dict[str, Any]]:
    target = protocol.call("Target.createTarget", url=PAGE)["targetId"]
    session = protocol.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
    wait_for(lambda: bool(protocol.evaluate(session, READY)), DEADLINE, "the developer tools")
    told = protocol.evaluate(session, IMPORT % base64.b64encode(har).decode())
    found: list[dict[str, Any]] = told["found"]
    assert told["rows"] == len(found), "the panel shows another number of rows than it lists"
    return found
