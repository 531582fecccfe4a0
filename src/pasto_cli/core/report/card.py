"""The card of an adapter: every sentence from the run's own facts, never a constant. No torch."""

from collections.abc import Mapping, Sequence
from typing import Any

from pasto_cli.base.format import format_estimate
from pasto_cli.core.records.evaluation import EvalRun

PUBLISHED_SIGN = (
    "**Label sign of the published code: rewards a dial that merely says Yes more often.**"
)


def card(meta: Mapping[str, Any], evaluations: Sequence[EvalRun]) -> str:
    """README.md of an artifact.

    Args:
        meta: pasto.json as a mapping.
        evaluations: What was measured with this adapter so far.
    """
    base, certificate = meta["base"], meta["certificate"]
    spec = base["spec"]
    source = spec["source"]
    on_hub = "/" in source and ":" not in source and not source.startswith((".", "/", "~"))
    front = ["---", "library_name: pasto", "tags: [pasto, steering, antipasto]"]
    front += [f"base_model: {source}"] if on_hub else []
    lines = [*front, "---", "", f"# {meta['recipe']['name']}", ""]
    lines += [
        f"A dial for `{source}`"
        + (f" at `{base['commit']}`" if base["commit"] else "")
        + ", trained without labels.",
        f"Coefficient +1: *{meta['personas'][0]}* Coefficient -1: *{meta['personas'][1]}* 0 is the "
        f"untouched model.",
        "",
        "## Use",
        "",
        "```bash",
        'pasto generate --adapter THIS --coeff -1 "Your prompt"',
        "```",
        "",
        "```python",
        "import pasto_cli",
        'model, tokenizer, dial = pasto_cli.load("THIS")',
        'for coeff, text in dial.generate("Your prompt", coeffs=[-1, 0, 1]):',
        "    print(coeff, text)",
        "```",
        "",
        "## What it was shown to do",
        "",
    ]
    lines += _certificate_lines(certificate, "imported" in meta["training"])
    if meta.get("calibration"):
        lines += ["", _calibration_line(meta["calibration"])]
    for run in evaluations:
        lines += ["", *_evaluation_lines(run)]
    lines += _making_lines(meta)
    return "\n".join(lines)


def _making_lines(meta: Mapping[str, Any]) -> list[str]:
    base, pairs, recipe, training = (
        meta["base"],
        meta["num_pairs"],
        meta["recipe"],
        meta["training"],
    )
    adapter, spec = recipe["adapter"], base["spec"]
    if "imported" in training:
        made = {
            "training": f"imported from `{training['imported']}`, an adapter of the published code"
        }
    else:
        made = {
            "pairs": f"{pairs['train']} training, {pairs['validation']} validation, {pairs['certificate']} certificate; "
            f"SHA-256 `{meta['pairs_sha256'][:16]}`",
            "loss subspace": f"`{recipe['subspace']['expression']}`, rank {recipe['subspace']['rank']}",
            "neutral branch": "on" if recipe["losses"]["neutral"] else "off",
            "training": f"{training['steps']} steps, best epoch {training['best_epoch']}, seed {recipe['training']['seed']}",
        }
    facts = {
        "base": f"`{spec['source']}`, {base['architecture']}, quantisation {spec['quantization']}, {base['dtype']}",
        "adapter": f"{len(base['fingerprints'])} modules, rank {adapter['rank']}, "
        + ("" if "imported" in training else f"directions `{adapter['directions']}`, ")
        + f"bound `{meta['bound']}`",
        **made,
        "largest rotation": f"{meta['largest_angle']:.1f} degrees at coefficient 1",
        "versions": ", ".join(f"{name} {version}" for name, version in meta["versions"].items()),
        "made": meta["created"],
    }
    table = [f"| {name} | {fact} |" for name, fact in facts.items()]
    method = "The full recipe stands in `pasto.json`. Method: AntiPaSTO (arXiv 2601.07473)."
    return ["", "## How it was made", "", "| | |", "|---|---|", *table, "", method, ""]


def _certificate_lines(certificate: Mapping[str, Any] | None, imported: bool) -> list[str]:
    if certificate is None and imported:
        return ["No certificate: the published format carries none."]
    if certificate is None:
        return ["No certificate: training was interrupted, or it failed before one could be made."]
    verdict = "passed" if certificate["passed"] else f"FAILED ({certificate['reason']})"
    up, down = certificate["strength"]["1"], certificate["strength"]["-1"]
    stand = certificate["persona_prompts"]
    return [
        f"Certificate: **{verdict}**, on {certificate['num_suffixes']} held-out openings under "
        f"{certificate['num_neutral_prompts']} held-out neutral prompts (n = {up['n']}).",
        "",
        "| | strength, prompt-equivalents [95 %] |",
        "|---|---|",
        f"| coefficient +1 | {format_estimate(up)} |",
        f"| coefficient -1 | {format_estimate(down)} |",
        f"| the positive persona prompt itself | {stand['chosen']:+.2f} |",
        f"| the negative persona prompt itself | {stand['rejected']:+.2f} |",
        "",
        f"One prompt-equivalent is {certificate['span_nats'] / 2:.3f} nats a token here.",
    ]


def _calibration_line(found: Mapping[str, Any]) -> str:
    up, down = found["coefficients"]["1"], found["coefficients"]["-1"]
    return (
        f"Calibrated: strength +100 % is coefficient {up:+.3g}, -100 % is {down:+.3g}, where the "
        f"95th percentile of KL to the "
        f"base on neutral prompts is {format_estimate(found['reached']['1'], signed=False)} and "
        f"{format_estimate(found['reached']['-1'], signed=False)} "
        f"nats (budget {found['kl_p95']:g}, n = {found['reached']['1']['n']} prompts)."
    )


def _evaluation_lines(run: EvalRun) -> list[str]:
    s = run.scores
    lines = [
        f"### {run.title}" + (" (part of it)" if run.partial else ""),
        "",
        *([PUBLISHED_SIGN, ""] if run.label_sign == "original" else []),
        f"Value: {run.value}. n = {s['n_target']} rows in "
        f"{s['coefficients']['0']['mean_score']['clusters']} dilemmas, "
        f"{s['n_control']} control rows. Licence {run.licence}; source: {run.source}.",
        "",
        f"Steering F1: {format_estimate(s['steering_f1'], 1, False)}",
        "",
        "| coefficient | mean score, nats | acquiescence, nats | P(Yes)+P(No) | invalid |",
        "|---|---|---|---|---|",
    ]
    for c in run.coefficients:
        e = s["coefficients"][f"{c:g}"]
        name = f"{c:+g}" if c else "0"
        lines.append(
            f"| {name} | {format_estimate(e['mean_score'])} | {format_estimate(e['acquiescence'])} "
            f"| {e['pmass']:.3f} | {e['invalid']} |"
        )
    return lines
