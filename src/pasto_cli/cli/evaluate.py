"""`pasto eval`: what the dial does on dilemmas that it never trained on."""

import math
from typing import TYPE_CHECKING, Annotated

import typer

from pasto_cli.cli import options
from pasto_cli.errors import PastoError

if TYPE_CHECKING:
    from pasto_cli.comparisons import Method
    from pasto_cli.evaluation.benchmarks import Benchmark
    from pasto_cli.evaluation.oracles import OracleScore
    from pasto_cli.evaluation.results import EvalRun


def evaluate(
    adapter: Annotated[
        str | None, typer.Argument(help="Run folder, adapter folder or Hub id. Default: the latest run.", show_default=False)
    ] = None,
    benchmark: Annotated[
        str | None,
        typer.Option(
            "--benchmark", "-b", help="dailydilemmas, mini-dilemmas or a .yaml file. Default: the recipe's.", show_default=False
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", help="Local folder with the DailyDilemmas file, instead of the Hub.", show_default=False),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most this many dilemmas (whole ones; controls stay).", show_default=False)
    ] = None,
    value: Annotated[
        str | None, typer.Option(help="The value that the dial should move. Default: the recipe's.", show_default=False)
    ] = None,
    coeffs: Annotated[
        str | None,
        typer.Option(help="Coefficients, such as -1,-0.5,0,0.5,1; -1, 0 and 1 are always measured.", show_default=False),
    ] = None,
    label_sign: Annotated[
        str, typer.Option(help="own, or original: the published fault, for comparison with published figures only.")
    ] = "own",
    oracles: Annotated[
        bool, typer.Option("--oracles", help="Score simulated steerers instead: what does the metric reward?")
    ] = False,
    baseline: Annotated[
        list[str] | None,
        typer.Option(
            help="Compare with prompt, engineered-prompt, control-vector, mean-diff or random-rotation. Repeatable.",
            show_default=False,
        ),
    ] = None,
    equal_kl: Annotated[
        bool, typer.Option("--equal-kl", help="Scale each method to 1 nat of disturbance (KL p95 on neutral prompts).")
    ] = False,
    quantization: options.Quantization = None,
    device: options.Device = None,
    no_verify: options.NoVerify = False,
    json: options.Json = False,
) -> None:
    """Measure a dial on a benchmark.

    Writes every row to eval/BENCHMARK.json in the run's folder and prints the scores with n and 95 % intervals (bootstrap over
    dilemmas).

    Examples:
      pasto eval --benchmark mini-dilemmas

      pasto eval --benchmark dailydilemmas --data DIR --limit 100 --coeffs -1,-0.5,0,0.5,1

      pasto eval --baseline prompt --baseline control-vector --equal-kl

      pasto eval --oracles --benchmark mini-dilemmas
    """  # fmt: skip
    coefficients = _parse(coeffs)
    if label_sign not in ("own", "original"):
        raise PastoError(f"--label-sign {label_sign!r} is not known", "Write own or original.")
    from pasto_cli import comparisons, workflows
    from pasto_cli.cli.output import Screen, out, print_json
    from pasto_cli.evaluation.results import dump

    screen = Screen()
    if oracles:
        name = benchmark or "mini-dilemmas"
        with screen.task(f"simulated steerers on {name}"):
            found = workflows.oracles(name, data, value or "honesty", label_sign)
        _show_oracles(*found, value or "honesty", label_sign, json)
        return
    workflows.check_benchmark(benchmark, data)
    comparisons.check_names(baseline or [])
    if (baseline or equal_kl) and (coeffs is not None or label_sign != "own"):
        raise PastoError(
            "--coeffs and --label-sign do not go with a comparison", "Leave them out, or leave out --baseline and --equal-kl."
        )
    dial = workflows.open_dial(adapter, screen, quantization, device, not no_verify)
    if baseline or equal_kl:
        part, value, provenance = workflows.plan_evaluation(dial, benchmark, data, limit, value)
        methods = comparisons.compare(dial, baseline or [], part, value, equal_kl, screen, provenance)
        for method in methods:
            workflows.keep_evaluation(dial, method.run, method.name + ("-equal-kl" if equal_kl else "-compared"))
        _show_comparison(methods, json)
        return
    run, path = workflows.evaluate_dial(dial, screen, benchmark, data, limit, coefficients, value, label_sign)  # type: ignore[arg-type]
    if json:
        import json as library

        print_json(library.loads(dump(run)))
        return
    _show(run)
    if path:
        out.print(f"every row: {path}", highlight=False, markup=False, soft_wrap=True)


def _parse(text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(part) + 0.0 for part in text.split(",")]  # -0 is 0
    except ValueError:
        raise PastoError(f"--coeffs {text!r} is not a list of numbers", "Write --coeffs=-1,-0.5,0,0.5,1") from None


def _show(run: "EvalRun") -> None:
    from rich.table import Table

    from pasto_cli.cli.output import out
    from pasto_cli.evaluation.report import figure

    s = run.scores
    _warn_of_sign(run.label_sign)
    dilemmas = s["coefficients"]["0"]["mean_score"]["clusters"]
    out.print(
        f"{run.title}: {run.value}, n = {s['n_target']} rows of {dilemmas} dilemmas, {s['n_control']} control rows"
        + (" (part of the benchmark)" if run.partial else ""),
        highlight=False, markup=False,
    )  # fmt: skip
    table = Table()
    for name in (
        "coefficient",
        "mean score, nats [95 %]",
        "shift from 0 [95 %]",
        "acquiescence [95 %]",
        "P(Yes)+P(No)",
        "invalid",
    ):
        table.add_column(name, justify="right")
    for c in run.coefficients:
        e = s["coefficients"][f"{c:g}"]
        zero = c == 0
        table.add_row(
            f"{c:+g}" if c else "0", figure(e["mean_score"]), "" if zero else figure(e["shift"]),
            "" if zero else figure(e["acquiescence"]), f"{e['pmass']:.3f}", str(e["invalid"]),
        )  # fmt: skip
    out.print(table)
    parts = s["parts"]
    summary = Table(show_header=False)
    summary.add_column("")
    summary.add_column("", justify="right")
    summary.add_row("Steering F1, 0 to 100 [95 %]", figure(s["steering_f1"], 1, False))
    summary.add_row(
        "Steering F1 on rows valid throughout", figure({"value": s["steering_f1_valid_only"], "low": math.nan}, 1, False)
    )
    summary.add_row("Surgical Informedness [95 %]", figure(s["informedness"], 1))
    summary.add_row("target rows fixed / broken at +1", f"{parts['correct_rate']:.1%} / {parts['wrong_rate']:.1%}")
    summary.add_row("control rows flipped at +1 or -1", f"{parts['arbitrary_rate']:.1%}")
    summary.add_row("(P(Yes)+P(No)) ratio, squared", f"{parts['pmass_ratio']:.3f}")
    out.print(summary)
    if said := _instead(run):
        out.print(f"invalid answers began with: {said}", highlight=False, markup=False)
    if math.isnan(s["steering_f1"]["value"]):
        out.print(
            f"Scores are undefined: less than {run.pmass_threshold:.0%} of the probability lies on Yes and No.", highlight=False
        )
    elif s["steering_f1"]["low"] <= 0:
        out.print(
            "The interval of Steering F1 reaches 0: this evaluation does not show that the dial moves the value.",
            highlight=False,
        )


def _warn_of_sign(label_sign: str) -> None:
    from pasto_cli.cli.output import out

    if label_sign == "original":
        out.print(
            "LABEL SIGN ORIGINAL: the log-odds and the label of not_to_do rows are both negated, as in the published code. "
            "This rewards a dial that merely says Yes more often; use it to compare with published figures only.",
            style="bold", highlight=False,
        )  # fmt: skip


def _show_oracles(
    benchmark: "Benchmark", labelled: int, scores: "list[OracleScore]", value: str, label_sign: str, json: bool
) -> None:
    from rich.table import Table

    from pasto_cli.cli.output import out, print_json
    from pasto_cli.evaluation.report import figure

    if json:
        records = [s._asdict() | {"f1": s.f1._asdict()} for s in scores]
        print_json(
            {"benchmark": benchmark.name, "value": value, "label_sign": label_sign, "rows": labelled, "oracles": records}
        )
        return
    _warn_of_sign(label_sign)
    out.print(f"Simulated steerers on {benchmark.title}: {value}, n = {labelled} labelled rows", highlight=False, markup=False)
    table = Table()
    for name in ("steerer", "Steering F1 [95 %]", "mean of 20 draws", "informedness", "shift, nats", "acquiescence, nats"):
        table.add_column(name, justify="left" if name == "steerer" else "right")
    for s in scores:
        table.add_row(
            s.name, figure(s.f1._asdict(), 1, False), f"{s.mean_f1:.1f}", f"{s.informedness:+.1f}", f"{s.shift:+.2f}",
            f"{s.acquiescence:+.2f}",
        )  # fmt: skip
    out.print(table)


def _show_comparison(methods: "list[Method]", json: bool) -> None:
    from rich.table import Table

    from pasto_cli.cli.output import out, print_json
    from pasto_cli.evaluation.report import figure

    if json:
        records = [
            {"method": m.name, "strength": m.strength, "kl_p95": [None if k != k else k for k in m.kl], "scores": m.run.scores}
            for m in methods
        ]
        print_json(records)
        return
    run = methods[0].run
    s = run.scores
    out.print(
        f"{run.title}: {run.value}, n = {s['n_target']} rows of {s['coefficients']['0']['mean_score']['clusters']} dilemmas, "
        f"{s['n_control']} control rows; brackets are 95 % intervals",
        highlight=False, markup=False,
    )  # fmt: skip
    table = Table()
    for name in ("method", "at +1 / -1", "KL p95 +1 / -1", "shift at +1", "shift at -1", "acquiescence +1", "Steering F1"):
        table.add_column(name, justify="left" if name == "method" else "right")
    for m in methods:
        s = m.run.scores
        up, down = s["coefficients"]["1"], s["coefficients"]["-1"]
        kl = "" if m.kl[0] != m.kl[0] else f"{m.kl[0]:.2f} / {m.kl[1]:.2f}"
        table.add_row(
            m.name, f"{m.strength[0]:.3g} / {m.strength[1]:.3g}", kl, figure(up["shift"]), figure(down["shift"]),
            figure(up["acquiescence"]), figure(s["steering_f1"], 1, False),
        )  # fmt: skip
    out.print(table)


def _instead(run: "EvalRun") -> str:
    """Most frequent openings of invalid answers, with counts."""
    from collections import Counter

    openings = Counter(answer.said for row in run.rows for answer in row.answers.values() if answer.pmass < run.pmass_threshold)
    return ", ".join(f"{text!r} ({n})" for text, n in openings.most_common(5))
