"""The command line: the table of contents, and the one place that turns errors into exit codes.

Exit codes: 0 done; 1 a mistake or a state that the user can mend (one clear line and a next step);
2 wrong usage; 130 interrupted. Nothing here imports torch: `pasto --help` is instant.
"""

import os
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer

from pasto_cli.base.errors import PastoError
from pasto_cli.base.files import unusable
from pasto_cli.base.launch import world_size
from pasto_cli.base.version import __version__
from pasto_cli.cli import (
    benchmarks,
    calibrate,
    chat,
    dial,
    evaluate,
    export,
    generate,
    import_,
    interference,
    make_pairs,
    plan,
    pull,
    push,
    recipe,
    recipes,
    report,
    serve,
    streams,
    train,
    tune,
    verify,
)

app = typer.Typer(
    help="A dial for a language model: trained from two words, measured, published.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("dial")(dial.dial)
app.command("plan")(plan.plan)
app.command("make-pairs")(make_pairs.make_pairs)
app.command("train")(train.train)
app.command("tune")(tune.tune)
app.command("eval")(evaluate.evaluate)
app.command("report")(report.report)
app.command("benchmarks")(benchmarks.benchmarks)
app.command("generate")(generate.generate)
app.command("chat")(chat.chat)
app.command("serve")(serve.serve)
app.command("calibrate")(calibrate.calibrate)
app.command("interference")(interference.interference)
app.command("export")(export.export)
app.command("import")(import_.import_)
app.command("verify")(verify.verify)
app.command("pull")(pull.pull)
app.command("push")(push.push)
app.command("recipe")(recipe.recipe)
app.add_typer(recipes.app, name="recipes")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"pasto {__version__}")
        raise typer.Exit


@app.callback()
def _pasto(
    version: Annotated[  # noqa: ARG001 (its callback does the work)
        bool,
        typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """Options of `pasto` itself."""


@contextmanager
def _processes() -> Iterator[None]:
    """Meet the other processes of accelerate launch or torchrun; only the first one speaks."""
    if world_size() == 1:
        _end_as_by_ctrl_c()
        if "ACCELERATE_USE_CPU" in os.environ and "MASTER_ADDR" in os.environ:
            from pasto_cli.cli.console import Screen

            Screen().warn(
                "accelerate starts one process only on a CPU without MPI; "
                "for several, write: torchrun --nproc-per-node 2 -m pasto_cli ..."
            )
        yield
        return
    from pasto_cli.cli import console
    from pasto_cli.core.models import distributed

    distributed.init()
    try:
        if distributed.rank() > 0:
            console.out.quiet = console.err.quiet = True
            with (
                open(os.devnull, "w", encoding="utf-8", errors="replace") as nowhere,
                redirect_stdout(nowhere),
            ):
                yield
        else:
            yield
    except SystemExit as end:
        if end.code in (0, None):
            distributed.leave(0)
        raise
    finally:
        distributed.destroy()


def _end_as_by_ctrl_c() -> None:
    """Let SIGTERM, by which batch systems end a job, do what Ctrl-C does.

    Several processes are left to die of it: they hear it in different steps and would wait for one
    another; their run goes on from its checkpoint.
    """

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    main_thread = threading.current_thread() is threading.main_thread()
    if main_thread and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, interrupt)


def _set_environment() -> None:
    """Settings of libraries that read them when they are imported; the user's own come first."""
    try:
        Path.home()
    except RuntimeError:
        # Libraries would take `~` for the name of a folder, and make it here.
        os.environ.setdefault("HF_HOME", os.path.join(tempfile.gettempdir(), f"hf-{os.getuid()}"))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Threads that spin while they wait make everything many times slower as soon as another program
    # uses the processor.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # Products in bfloat16 on a CPU keep a compiled kernel for each of the last 1024 shapes. Trees
    # have another shape in nearly every pass, so that a training would grow from step to step.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")
    os.environ.setdefault("LRU_CACHE_CAPACITY", "32")


def _show_own_warnings() -> None:
    """Show a warning that memory ran short as other warnings of pasto; leave the rest to Python."""
    usual = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if category.__name__ != "ShortageWarning":  # by its name: the class needs torch
            return usual(message, category, *where, **more)
        from pasto_cli.cli.console import Screen

        return Screen().warn(str(message))

    warnings.showwarning = show


def _run() -> None:
    """Run a command, and see that what it had to say could be said."""
    streams.require_text(sys.argv[1:])
    try:
        app()
    except SystemExit as end:
        if end.code in (0, None):
            streams.require_written()
        raise
    except PastoError as error:
        raise streams.with_lost_output(error) from None


def main() -> None:
    """Run a command; a `PastoError` becomes a line, a next step and exit code 1."""
    streams.guard()
    _set_environment()
    _show_own_warnings()
    try:
        with _processes():
            _run()
    except PastoError as error:
        from pasto_cli.cli.console import show_error

        show_error(error)
        sys.exit(1)
    except KeyboardInterrupt:  # before or after the command itself, which ends by itself
        sys.exit(130)
    except OSError as error:
        found = unusable(error)
        if found is None:
            raise
        from pasto_cli.cli.console import show_error

        show_error(found)
        sys.exit(1)
