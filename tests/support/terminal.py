"""A real terminal for full-screen programs: tmux with a server, a size and a configuration of its own."""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self


class Terminal:
    """80x24, running one command; ``with`` ends it and its tmux."""

    def __init__(self, folder: str, command: Sequence[str], *, cwd: str) -> None:
        self._tmux = ["tmux", "-S", f"{folder}/tmux.sock", "-f", "/dev/null"]
        environment = {key: value for key, value in os.environ.items() if key != "TMUX"}
        # set-clipboard external: what a program puts into the clipboard (OSC 52) becomes tmux's buffer.
        self._run(
            "new-session", "-d", "-x", "80", "-y", "24", ";", "set", "-s", "set-clipboard", "on", ";",
            "set", "-g", "remain-on-exit", "on", env=environment,
        )  # fmt: skip
        # Not tmux's pane_dead_status: seen to stay empty while the program is a zombie of tmux (3.3a).
        self._status = Path(folder) / "status"
        ending = f"echo $? >{shlex.quote(str(self._status))}"
        self._run("respawn-pane", "-k", f"cd {shlex.quote(cwd)} && {shlex.join(command)}; {ending}")

    def _run(self, *arguments: str, env: dict[str, str] | None = None) -> str:
        done = subprocess.run(
            [*self._tmux, *arguments], capture_output=True, text=True, check=False, timeout=30, env=env
        )
        assert done.returncode == 0, (arguments, done.stderr)
        return done.stdout

    def screen(self) -> str:
        """The 24 lines."""
        return self._run("capture-pane", "-p")

    def press(self, *keys: str) -> None:
        """Keys by tmux's names: Up, Enter, Escape, or characters."""
        self._run("send-keys", *keys)

    def clipboard(self) -> str:
        """What the program copied; nothing until it did."""
        done = subprocess.run([*self._tmux, "show-buffer"], capture_output=True, text=True, check=False)
        return done.stdout

    def ended(self) -> str:
        """The command's exit status once it has ended."""
        return self._status.read_text().strip() if self._status.exists() else ""

    def until(self, condition: Callable[[str], object], what: str) -> str:
        """The screen that meets the condition."""
        deadline = time.monotonic() + 30
        while not condition(screen := self.screen()):
            assert time.monotonic() < deadline, f"{what}:\n{screen}"
            time.sleep(0.05)
        return screen

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        subprocess.run([*self._tmux, "kill-server"], capture_output=True, check=False)
