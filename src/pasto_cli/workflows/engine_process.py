"""A stock engine as a process of our own: started, waited for, ended."""

import contextlib
import os
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from pasto_cli.base.errors import PastoError
from pasto_cli.workflows.progress import Watcher

LAST_LINES = 12
"""Lines of an engine's log that are shown where it did not start."""
LOOK = 0.2
"""Seconds between two looks at an engine that starts."""
LEAVE = 20.0
"""Seconds that an engine has to end by itself."""


class EngineProcess:
    """A server on a free port of this machine.

    Args:
        command: What starts it, as in a shell.
        arguments: What comes after that; host and port are added.
        log: File for what it says.
        environment: Added to this process's own.

    Raises:
        PastoError: If there is no such program.
    """

    def __init__(
        self, command: str, arguments: Sequence[str], log: Path, environment: Mapping[str, str]
    ) -> None:
        self.words = shlex.split(command)
        if not self.words or shutil.which(self.words[0]) is None:
            raise PastoError(
                f"no program {command!r} here",
                "Install the engine, name its command (--engine-command), or point pasto at one "
                "that runs (--upstream URL).",
            )
        self.log = log
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        with log.open("wb") as said:
            self.process = subprocess.Popen(
                [*self.words, *arguments, "--host", "127.0.0.1", "--port", str(port)],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                env=os.environ | dict(environment),
                # Ctrl-C is for pasto, which ends the engine when its own answers have ended.
                start_new_session=True,
            )

    def wait(self, watch: Watcher) -> str:
        """The address, once the server answers there.

        Raises:
            PastoError: If it ends instead, with the end of its log.
        """
        import httpx2 as httpx

        with watch.task(f"starting {' '.join(self.words)}"):
            while self.process.poll() is None:
                with contextlib.suppress(httpx.HTTPError):
                    if httpx.get(f"{self.url}/health", trust_env=False).is_success:
                        return self.url
                time.sleep(LOOK)
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        said = "\n".join(lines[-LAST_LINES:])
        raise PastoError(
            f"{' '.join(self.words)} ended with exit code {self.process.returncode}:\n{said}",
            "Mend what it says; --engine-command takes options for it.",
        )

    def close(self) -> None:
        """End it; what does not end by itself is killed."""
        if self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(LEAVE)
        except subprocess.TimeoutExpired:
            # Its workers too: they are in its session and nobody else's.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, 9)
            self.process.wait()
