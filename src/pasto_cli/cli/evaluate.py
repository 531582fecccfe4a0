"""`pasto eval`: what the dial does on dilemmas that it never trained on."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer

from pasto_cli.base.errors import PastoError
from pasto_cli.base.limits import require_coefficients
from pasto_cli.base.paths import expanded
from pasto_cli.cli import options

if TYPE_CHECKING:
    from pasto_cli.cli.console import Screen
    from pasto_cli.core.recipe.schema import Recipe
    from pasto_cli.workflows.compare import Method
    from pasto_cli.workflows.dials import Dial, LoadOptions
    from pasto_cli.workflows.evaluate import Wanted

SENTIMENT = "sentiment"
"""The one benchmark that asks no Yes/No questions."""
NOT_WITH_ORACLES = (
    *("--limit", "--coeffs", "--baseline", "--equal-kl", "--together", "an adapter"),
    *("--quantization", "--device", "--no-verify", "--raw"),  # no model is loaded
)
NOT_WITH_SENTIMENT = (
    *("--baseline", "--equal-kl", "--together", "--value", "--label-sign", "--data"),
)
NOT_IN_A_COMPARISON = ("--coeffs", "--label-sign")
NOT_WITH_A_HARNESS = (
    *("--benchmark", "--value", "--label-sign", "--oracles", "--baseline", "--equal-kl"),
    *("--together", "several adapters"),
)
NOT_WITHOUT_A_HARNESS = ("--tasks", "--batch-size")


def evaluate(
    adapters: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[ADAPTER]...",
            help="Run folders, adapter folders or Hub ids; several are summed up over seeds. "
            "Default: the latest run.",
            show_default=False,
        ),
    ] = None,
    benchmark: Annotated[
        str | None,
        typer.Option(
            "--benchmark",
            "-b",
            show_default=False,
            help="A name that `pasto benchmarks` lists, or a .yaml or .jsonl file. "
            "Default: the recipe's.",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="Local folder with the DailyDilemmas files, instead of the Hub; "
            "with --harness one of task files of your own.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            callback=options.count,
            help="At most this many dilemmas (whole ones; controls stay), or documents of a task.",
            show_default=False,
        ),
    ] = None,
    value: Annotated[
        str | None,
        typer.Option(
            help="The value that the dial should move. Default: the recipe's.", show_default=False
        ),
    ] = None,
    coeffs: Annotated[
        str | None,
        typer.Option(
            help="Coefficients, such as -1,-0.5,0,0.5,1; -1, 0 and 1 are always measured, "
            "except with --harness.",
            show_default=False,
        ),
    ] = None,
    label_sign: Annotated[
        str,
        typer.Option(
            help="own, or original: the published fault, for comparison with published scores only."
        ),
    ] = "own",
    oracles: Annotated[
        bool,
        typer.Option(
            "--oracles", help="Score simulated steerers instead: what does the metric reward?"
        ),
    ] = False,
    baseline: Annotated[
        list[str] | None,
        typer.Option(
            help="Compare with prompt, engineered-prompt, control-vector, mean-diff, "
            "random-rotation, or the folder of another run. Repeatable.",
            show_default=False,
        ),
    ] = None,
    equal_kl: Annotated[
        bool,
        typer.Option(
            "--equal-kl",
            help="Scale each method to 1 nat of disturbance (KL p95 on neutral prompts).",
        ),
    ] = False,
    together: Annotated[
        bool,
        typer.Option(
            "--together",
            help="Measure several adapters turned at once as well, each at its share: what differs "
            "from seed to seed is averaged out.",
        ),
    ] = False,
    harness: Annotated[
        str | None,
        typer.Option(
            help="Run tasks of another harness instead: lm_eval (lm-evaluation-harness).",
            show_default=False,
        ),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(help="Tasks of that harness, such as arc_easy,hellaswag.", show_default=False),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            callback=options.count,
            help="Rows of a batch of that harness. Default: 8.",
            show_default=False,
        ),
    ] = None,
    quantization: options.Quantization = None,
    device: options.Device = None,
    no_verify: options.NoVerify = False,
    raw: options.Raw = False,
    json: options.Json = False,
) -> None:
    """Measure dials on a benchmark.

    Writes every row to eval/BENCHMARK.json in the run's folder and prints the scores with n and
    95 % intervals (bootstrap over dilemmas). `pasto report` makes a page with plots of them.

    Examples:
      pasto eval --benchmark mini-dilemmas

      pasto eval --benchmark dailydilemmas --data DIR --limit 100 --coeffs -1,-0.5,0,0.5,1

      pasto eval --baseline prompt --baseline control-vector --equal-kl

      pasto eval runs/a-seed0 runs/a-seed1 runs/a-seed2 --baseline prompt --equal-kl --together

      pasto eval --oracles --benchmark mini-dilemmas

      pasto eval --harness lm_eval --tasks arc_easy,hellaswag --coeffs=-1,0,1 --limit 200
    """
    coefficients = _parse(coeffs)
    if label_sign not in ("own", "original"):
        raise PastoError(f"--label-sign {label_sign!r} is not known", "Write own or original.")
    names, given = baseline or [], adapters or []
    set_options = {
        "--limit": limit is not None,
        "--coeffs": coeffs is not None,
        "--baseline": bool(names),
        "--equal-kl": equal_kl,
        "--together": together,
        "--value": value is not None,
        "--label-sign": label_sign != "own",
        "several adapters": len(given) > 1,
        "an adapter": len(given) > 0,
        "--data": data is not None,
        "--quantization": quantization is not None,
        "--device": device is not None,
        "--no-verify": no_verify,
        "--raw": raw,
        "--benchmark": benchmark is not None,
        "--oracles": oracles,
        "--tasks": tasks is not None,
        "--batch-size": batch_size is not None,
    }
    load_options = partial(options.load_options, quantization, device, no_verify, raw)
    if harness is not None:
        _refuse(set_options, "--harness", NOT_WITH_A_HARNESS)
        asked_of_it = Tasks(harness, tasks, coefficients, limit, data, batch_size)
        _run_harness(next(iter(given), None), asked_of_it, load_options, json)
        return
    _refuse(set_options, "the benchmarks of pasto", NOT_WITHOUT_A_HARNESS)
    if oracles:
        _refuse(set_options, "--oracles", NOT_WITH_ORACLES)
        _oracles(benchmark or "mini-dilemmas", data, value, label_sign, json)
        return
    asked: dict[str, Any] = {
        "benchmark": benchmark,
        "data": data,
        "limit": limit,
        "value": value,
        "coefficients": coefficients,
        "label_sign": label_sign,
    }
    beside = Compared(names, equal_kl, together)
    _benchmarks(given, beside, asked, set_options, load_options, json)


class Compared(NamedTuple):
    """What a dial is to stand beside."""

    names: Sequence[str]
    equal_kl: bool
    together: bool


def _benchmarks(
    given: Sequence[str],
    beside: Compared,
    asked: dict[str, Any],
    set_options: Mapping[str, bool],
    load_options: "Callable[[], LoadOptions]",
    json: bool,
) -> None:
    """Benchmarks of our own."""
    benchmark = asked["benchmark"]
    comparison = bool(beside.names or beside.equal_kl or beside.together)
    if benchmark == SENTIMENT:
        _refuse(set_options, f"--benchmark {SENTIMENT}", NOT_WITH_SENTIMENT)
    if comparison:
        _refuse(set_options, "a comparison", NOT_IN_A_COMPARISON)
    from pasto_cli.cli import tables
    from pasto_cli.cli.console import Screen
    from pasto_cli.core.evaluation.benchmarks import check_benchmark
    from pasto_cli.core.evaluation.seeds import unlike
    from pasto_cli.workflows import compare, dials
    from pasto_cli.workflows import evaluate as workflow

    check_benchmark(benchmark, asked["data"])
    compare.check_names(beside.names)
    screen, how = Screen(), load_options()
    adapters = [dials.find_adapter(name, screen) for name in given or [None]]
    if beside.together:
        compare.require_one_base([found.meta for found in adapters])
    if differing := unlike([found.recipe for found in adapters]):
        screen.warn(
            f"these dials differ in more than their seeds ({', '.join(differing[:4])}): what is "
            f"said over all of them is said of a mixture"
        )
    if beside.together and len({found.meta.calibration is None for found in adapters}) > 1:
        screen.warn(
            "some of these dials have calibrated ends and some have not: +1 means another "
            "thing in each (pasto calibrate finds them)"
        )
    # Before a model is loaded: what can be refused, is refused now.
    wanted = [_want(found.recipe, asked, set_options) for found in adapters]
    opened = (dials.open_found(found, screen, how) for found in adapters)
    if comparison:
        tables.show_comparisons(_compared(opened, wanted, beside, screen), json)
        return

    def measured(dial: "Dial", ask: "Wanted | None") -> workflow.Measured:
        if ask is not None:
            return workflow.evaluate_dial(dial, workflow.plan_evaluation(dial, ask), screen)
        coefficients, limit = asked["coefficients"], asked["limit"]
        return workflow.evaluate_sentiment(dial, screen, coefficients, limit)

    found = [measured(dial, ask) for dial, ask in zip(opened, wanted, strict=True)]
    tables.show_runs(found, workflow.across_runs(found), json)


def _want(
    recipe: "Recipe", asked: Mapping[str, Any], set_options: Mapping[str, bool]
) -> "Wanted | None":
    """What is asked of a dial; None for the benchmark without questions."""
    from pasto_cli.workflows import evaluate as workflow

    if (asked["benchmark"] or recipe.evaluation.benchmark) != SENTIMENT:
        return workflow.want(recipe, **asked)
    _refuse(set_options, f"the recipe's benchmark, {SENTIMENT}", NOT_WITH_SENTIMENT)
    workflow.sentiment_coefficients(recipe, asked["coefficients"])
    return None


def _run_harness(
    name: str | None, tasks: "Tasks", load_options: "Callable[[], LoadOptions]", json: bool
) -> None:
    """Tasks of another harness."""
    if not tasks.names:
        raise PastoError("--harness needs tasks", "Write --tasks arc_easy,hellaswag")
    from pasto_cli.cli import tables
    from pasto_cli.cli.console import Screen
    from pasto_cli.workflows import dials
    from pasto_cli.workflows.harnesses import run

    run.check_harness(tasks.harness)
    asked = run.Asked(
        tasks=[name.strip() for name in tasks.names.split(",") if name.strip()],
        coefficients=tasks.coefficients or run.COEFFICIENTS,
        limit=tasks.limit,
        folder=None if tasks.folder is None else expanded(tasks.folder),
        batch_size=tasks.batch_size or 8,
    )
    prepared, screen = run.prepare(asked), Screen()
    dial = dials.open_dial(name, screen, load_options(), packing=False)
    tables.show_harness(run.run_tasks(dial, prepared, screen), json)


class Tasks(NamedTuple):
    """What is asked of another harness, as the options say it."""

    harness: str
    names: str | None
    coefficients: Sequence[float] | None
    limit: int | None
    folder: str | None
    batch_size: int | None


def _compared(
    opened: "Iterable[Dial]", wanted: "Sequence[Wanted | None]", beside: Compared, screen: "Screen"
) -> "list[list[Method]]":
    """Each dial beside its baselines; what two dials share is measured once."""
    from pasto_cli.workflows import compare
    from pasto_cli.workflows import evaluate as workflow

    found: list[list[Method]] = []
    folders: list[Path] = []
    before: Dial | None = None
    for dial, ask in zip(opened, wanted, strict=True):
        assert ask is not None  # refused by `_want`
        plan = workflow.plan_evaluation(dial, ask)
        known = compare.same_for_both(found[-1], before, dial) if before else []
        # The last one has all the others at hand.
        others = folders if beside.together and len(folders) == len(wanted) - 1 else []
        found.append(
            compare.compare(dial, beside.names, plan, beside.equal_kl, screen, known, others)
        )
        folders.append(dial.folder)
        before = dial
    return found


def _refuse(given: Mapping[str, bool], where: str, not_with: Sequence[str]) -> None:
    """A clear line instead of an option that is passed over."""
    if wrong := [name for name in not_with if given[name]]:
        does = "does" if len(wrong) == 1 and not wrong[0].startswith("several") else "do"
        raise PastoError(
            f"{' and '.join(wrong)} {does} not go with {where}", "Leave one of them out."
        )


def _oracles(name: str, data: str | None, value: str | None, label_sign: str, json: bool) -> None:
    from pasto_cli.cli import tables
    from pasto_cli.cli.console import Screen
    from pasto_cli.workflows import evaluate as workflow

    if name == SENTIMENT:
        raise PastoError(
            "--oracles answer yes/no questions; sentiment has none", "Name another benchmark."
        )
    with Screen().task(f"simulated steerers on {name}"):
        sign: Literal["own", "original"] = "own" if label_sign == "own" else "original"
        found = workflow.oracles(name, data, value, sign)
    tables.show_oracles(*found, sign, json)


def _parse(text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        found = [float(part) + 0.0 for part in text.split(",")]  # -0 is 0
    except ValueError:
        raise PastoError(
            f"--coeffs {text!r} is not a list of numbers", "Write --coeffs=-1,-0.5,0,0.5,1"
        ) from None
    require_coefficients(found, "--coeffs")
    return found
