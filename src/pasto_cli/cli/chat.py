"""`pasto chat`: a dial in a terminal."""

import contextlib
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from pasto_cli.base.errors import PastoError
from pasto_cli.base.limits import require_temperature
from pasto_cli.base.paths import expanded
from pasto_cli.cli import options

if TYPE_CHECKING:
    from pasto_cli.workflows.chat import Conversation

HELP = """\
/dial honest -0.5      turn a dial; /dial -0.5 where there is one, /dial base turns all off
/compare -1 0 1        the last question at these coefficients (of a dial: /compare honest -1 1)
/system TEXT           a system message from now on; without TEXT none
/save FILE             the conversation as lines of JSON, or as markdown if FILE ends in .md
/reset                 forget the conversation
/quit                  end, as Ctrl-D does; Ctrl-C stops an answer"""
ENDS = ("-1", "0", "1")
"""What /compare compares if nothing is said."""


def chat(
    adapters: options.Served = None,
    max_new_tokens: options.MaxNewTokens = 512,
    temperature: options.Temperature = 0.0,
    seed: options.SamplingSeed = 0,
    quantization: options.Quantization = None,
    device: options.Device = None,
    no_verify: options.NoVerify = False,
    raw: options.Raw = False,
) -> None:
    """Talk to a model and turn its dials between answers.

    Ctrl-C stops an answer, Ctrl-D ends it, /help lists what else there is. From a pipe every line
    is a message.

    Examples:
      pasto chat

      pasto chat honest=runs/honest:-0.5 cheerful=runs/cheerful:0

      pasto chat --temperature 1 < questions.txt
    """
    require_temperature(temperature)
    from pasto_cli.cli.console import Screen
    from pasto_cli.core.serving.engine import Sampling
    from pasto_cli.core.serving.limits import Limits
    from pasto_cli.workflows.chat import Conversation
    from pasto_cli.workflows.serve import open_service

    screen = Screen()
    service = open_service(
        adapters or (),
        screen,
        options.load_options(quantization, device, no_verify, raw),
        Limits(max_tokens=max_new_tokens),
    )
    conversation = Conversation(service, Sampling(temperature=temperature, seed=seed))
    try:
        _Session(conversation, screen.note).run()
    finally:
        conversation.close()


class _Session:
    """Reads lines and does what they say.

    Args:
        conversation: What is said.
        note: Shows what is neither question nor answer.
    """

    def __init__(self, conversation: "Conversation", note: Callable[[str], None]) -> None:
        self.conversation, self.note = conversation, note
        self.terminal = sys.stdin.isatty() and sys.stdout.isatty()
        self.dial = conversation.dials[0]
        """The one that was turned last."""
        self.commands: dict[str, Callable[[str], None]] = {
            "/dial": self._dial,
            "/compare": self._compare,
            "/system": self._system,
            "/save": self._save,
            "/reset": self._reset,
            "/help": lambda _: self.note(HELP),
        }

    def run(self) -> None:
        """Until /quit or the end of input."""
        if self.terminal:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401 (from then on `input` has arrow keys and a history)
            self.note("/help lists commands; Ctrl-C stops an answer, Ctrl-D ends")
        while True:
            try:
                line = self._line()
                if line is None or line in ("/quit", "/exit"):
                    return
                if line:
                    self._do(line)
            except KeyboardInterrupt:
                if not self.terminal:
                    raise
                sys.stdout.write("\n")
                self.note("Ctrl-D or /quit ends")

    def _line(self) -> str | None:
        """The next line, None at the end."""
        prompt = f"{self._where()}> " if self.terminal else ""
        try:
            text = input(prompt)
        except EOFError:
            if self.terminal:
                sys.stdout.write("\n")
            return None
        except UnicodeDecodeError:
            raise PastoError("standard input is not UTF-8", "Convert it to UTF-8 first.") from None
        # A terminal may send bytes that are no text; `input` hides them in surrogates.
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace").strip()

    def _do(self, line: str) -> None:
        """A command or a message; a mistake is told in one line."""
        from pasto_cli.cli.console import show_mistake

        command, _, rest = line.partition(" ")
        try:
            if not command.startswith("/"):
                self._answer(line)
            elif command in self.commands:
                self.commands[command](rest.strip())
            else:
                raise PastoError(f"{command} is no command", "/help lists them.")
        except PastoError as error:
            show_mistake(error)

    def _answer(self, question: str) -> None:
        turn = self.conversation.answer(question, self._write)
        sys.stdout.write("\n")
        if turn.interrupted:
            if not self.terminal:
                raise KeyboardInterrupt
            self.note("stopped")

    def _dial(self, rest: str) -> None:
        names, words = self.conversation.dials, rest.split()
        if len(words) == 1 and len(names) == 1 and _is_number(words[0]):
            words = [names[0], *words]
        if len(words) == 1:
            self.conversation.turn_to(words[0])
        elif len(words) == 2:
            self.conversation.turn(*words)
            self.dial = words[0]
        elif words:
            raise PastoError(f"/dial {rest}: not a dial and a coefficient", f"/dial {names[0]} -1")
        else:
            self.note(f"dials: {', '.join(names)}")
        self.note(f"now at {self._where()}")

    def _compare(self, rest: str) -> None:
        words = rest.split()
        named = bool(words) and not _is_number(words[0])
        name = words.pop(0) if named else self.dial
        first = True

        def begin(position: str) -> None:
            nonlocal first
            sys.stdout.write(f"{'' if first else chr(10) * 2}[{position}] ")
            first = False

        try:
            self.conversation.compare(name, words or ENDS, begin, self._write)
        finally:
            if not first:
                sys.stdout.write("\n")

    def _system(self, rest: str) -> None:
        self.conversation.system = rest or None
        self.note("system message set" if rest else "no system message")

    def _save(self, rest: str) -> None:
        if not rest:
            raise PastoError("/save needs the name of a file", "/save conversation.jsonl")
        self.conversation.save(expanded(rest))
        self.note(f"saved to {rest}")

    def _reset(self, _: str) -> None:
        self.conversation.reset()
        self.note("the conversation is empty")

    def _where(self) -> str:
        from pasto_cli.core.serving.positions import name_of

        return name_of(self.conversation.position)

    def _write(self, text: str) -> None:
        sys.stdout.write(_harmless(text) if self.terminal else text)
        sys.stdout.flush()


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _harmless(text: str) -> str:
    """Text without the characters that would steer a terminal."""
    return "".join(c if c in "\n\t" or c.isprintable() else "\ufffd" for c in text)
