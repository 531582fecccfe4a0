"""`pasto chat`, from a pipe and in a pseudo-terminal."""

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time

import pytest

from pasto_cli.core.serving.transformers_engine import TransformersEngine
from tests.support.terminal import ROOT, strict

PROMPT = r"(?:base|d@[-\d]+)> $"
OPTIONS = ("--raw", "--no-verify", "--max-new-tokens")


def records(path):
    return [strict(line) for line in path.read_text().splitlines()]


def test_a_conversation_from_a_pipe(pasto, project, monkeypatch):
    asked, stream = [], TransformersEngine.stream

    def spy(self, request, position):
        asked.append([tuple(message) for message in request.prompt])
        return stream(self, request, position)

    monkeypatch.setattr(TransformersEngine, "stream", spy)
    lines = (
        *("Hello", "/dial d -100", "/reset", "Hello", "And you?", "/compare", "/compare 100 -100"),
        *("/dial d much", "/dial d nan", "/dial e 1", "/nonsense", "/save", "/save no/such.md"),
        *(
            "/save talk.jsonl",
            "/save talk.jsonl",
            "/system Be brief.",
            "/compare 0",
            "/save talk.md",
        ),
        *("/save tiny.yaml", "/dial base", "/quit", "Never asked"),
    )
    said = pasto("chat", f"d={project.run}:100", *OPTIONS, 16, stdin="\n".join(lines))
    assert said.code == 0, said.err
    talk = records(project.root / "talk.jsonl")
    assert [turn["role"] for turn in talk] == ["user", "assistant"] * 2
    assert [turn.get("dial") for turn in talk] == [None, {"d": -100.0}] * 2
    said_so_far = [(turn["role"], turn["content"]) for turn in talk]
    alone, three = said_so_far[:1], said_so_far[:3]
    assert asked == [alone, alone, *[three] * 6, [("system", "Be brief."), *three]]
    assert talk[1]["model"] == "d@-100"
    # The first answer was forgotten, but it had been written: that of `pasto generate`, as all are.
    told = pasto(
        *("generate", "Hello", "-a", project.run, "--raw", "--no-verify", "--json"),
        *("-c", 100, "-c", -100, "--max-new-tokens", 16),
    )
    texts = {turn["coeff"]: turn["text"] for turn in strict(told.out)}
    assert talk[1]["content"].strip() == texts[-100] != texts[100]
    assert said.out.lstrip().startswith(texts[100])
    for position in ("[d@-1] ", "[base] ", "[d@1] ", "[d@100] ", f"[d@-100] {talk[3]['content']}"):
        assert position in said.out
    mistakes = [line for line in said.err.splitlines() if line.startswith("error:")]
    words = ("'much', not a finite", "'nan', not a finite", "no dial is called 'e'", "no command")
    words += ("name of a file", "no is no folder", "is there already")
    assert len(mistakes) == len(words)
    assert all(word in line for word, line in zip(words, mistakes, strict=True))
    markdown = (project.root / "talk.md").read_text()
    assert "**System**\n\nBe brief." in markdown and "**d@-100**" in markdown
    assert "now at base" in said.err and "Never asked" not in said.out + said.err


def test_it_starts_where_its_dials_were_put_and_says_what_does_not_fit(pasto, project, other):
    long = "x" * 5000
    said = pasto(
        *("chat", f"up={project.run}", f"down={other}:-0.5", *OPTIONS, 4),
        stdin=f"/compare\n{long}\n/dial\n/dial up@0.5+down@2\n/dial down 0\n",
    )
    assert said.code == 0
    told = [line for line in said.err.splitlines() if re.match("error|now|dials", line)]
    assert told[0] == "error: nothing was asked yet. Ask something first."
    assert "the model has 4096 positions" in told[1] and "/reset" in told[1]
    assert told[2:] == [
        *("dials: up, down", "now at up@1+down@-0.5"),
        *("now at up@0.5+down@2", "now at up@0.5"),
    ]
    assert pasto("chat", "no-such-run").error == "error: no-such-run: no adapter here"
    assert pasto("chat", project.run, stdin=b"\xff\n").error == "error: standard input is not UTF-8"


class Terminal:
    """`pasto chat ARGS` in a pseudo-terminal of 100 columns."""

    def __init__(self, folder, *args):
        path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
        more = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "TERM": "dumb"}
        command = [sys.executable, "-m", "pasto_cli", "chat", *map(str, args)]
        self.pid, self.file = pty.fork()
        if self.pid == 0:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # jobs in the background ignore it
            os.chdir(folder)
            os.execve(command[0], command, os.environ | more)
        fcntl.ioctl(self.file, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
        self.unread = ""

    def type(self, text):
        os.write(self.file, text.encode())

    def read(self, pattern, seconds=120):
        """What is shown up to a pattern."""
        end = time.monotonic() + seconds
        while (found := re.search(pattern, self.unread)) is None:
            left = end - time.monotonic()
            assert left > 0 and select.select([self.file], [], [], left)[0], self.unread
            self.unread += os.read(self.file, 4096).decode(errors="replace").replace("\r", "")
        shown, self.unread = self.unread[: found.end()], self.unread[found.end() :]
        return shown

    def do(self, line):
        """What a line gives, up to the next prompt."""
        self.type(f"{line}\n")
        self.read(r"\n")  # the line itself
        return self.read(PROMPT)

    def end(self):
        """The exit code, once it has ended by itself."""
        with contextlib.suppress(OSError):  # how the end of a pseudo-terminal reads
            while os.read(self.file, 4096):
                pass
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self.pid = None
        return code

    def close(self):
        """Kill what a failed test leaves."""
        os.close(self.file)
        if self.pid is not None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


@pytest.fixture()
def terminal(project):
    """A terminal on the dial d."""
    opened = Terminal(project.root, f"d={project.run}", *OPTIONS, 1200)
    yield opened
    opened.close()


def interrupted(terminal, line):
    """What is shown of an answer that Ctrl-C stops in the middle."""
    for _ in range(20):
        terminal.type(f"{line}\n")
        terminal.read(r"\n")
        shown = terminal.read(r"(?s)^.{8}")
        terminal.type("\x03")
        shown += terminal.read(PROMPT)
        if "stopped" in shown:
            return shown
        terminal.do("/reset")  # it had come to its end
    raise AssertionError(shown)


def test_a_terminal(project, terminal):
    assert "/help lists commands" in terminal.read(PROMPT)
    assert "d@-100> " in terminal.do("/dial -100")
    assert "d@-100> " in terminal.do("\x1b[A")  # the same line again, from the history
    for wrong, word in (("/dial much", "much"), ("/dial d much", "much"), ("/dial e 1", "'e'")):
        (line,) = [text for text in terminal.do(wrong).splitlines() if "error" in text]
        assert word in line
    interrupted(terminal, "Hello")
    time.sleep(0.5)  # Python's readline misses a signal that comes before it waits for a key
    terminal.type("\x03")  # where there is nothing to stop
    assert "Ctrl-D or /quit ends" in terminal.read(PROMPT)
    compared = terminal.do("/compare -100 0 100")
    texts = re.search(r"(?s)\[d@-100\] (.*)\[base\] (.*)\[d@100\] (.*)\n", compared).groups()
    assert len({text.strip() for text in texts}) == 3
    assert "\x18" not in compared and "\x1b" not in compared  # what would steer the terminal
    terminal.do("/dial 100")
    terminal.do("Hello")
    assert "saved" in terminal.do("/save talk.jsonl")
    terminal.type("\x04")
    assert terminal.end() == 0
    first, answer, _, last = records(project.root / "talk.jsonl")
    assert first["content"] == "Hello" and answer["interrupted"] and answer["content"]
    assert (answer["model"], last["model"]) == ("d@-100", "d@100")
