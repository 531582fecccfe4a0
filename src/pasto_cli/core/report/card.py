"""The card of an adapter: every sentence from the run's own facts, never a constant. No torch."""

from collections.abc import Sequence
from typing import Literal

from pasto_cli.base.format import format_coefficient, format_estimate, format_optional
from pasto_cli.core.records.adapter import Calibration, Certificate, Meta
from pasto_cli.core.records.evaluation import EvalRun
from pasto_cli.core.records.training import ImportRecord

PUBLISHED_SIGN = (
    "**Label sign of the published code: rewards a dial that merely says Yes more often.**"
)
USE = """\
## Use

```bash
pasto generate --adapter THIS --coeff -1 "Your prompt"
```

```python
import pasto_cli
model, tokenizer, dial = pasto_cli.load("THIS")
for coeff, text in dial.generate("Your prompt", coeffs=[-1, 0, 1]):
    print(coeff, text)
```
"""
"""THIS stands for the adapter's address, which is known when it is published."""


def card(meta: Meta, evaluations: Sequence[EvalRun]) -> str:
    """README.md of an artifact.

    Args:
        meta: pasto.json.
        evaluations: What was measured with this adapter so far.
    """
    imported = isinstance(meta.training, ImportRecord)
    lines = [*_head_lines(meta), "", USE, "## What it was shown to do", ""]
    lines += _certificate_lines(meta.certificate, imported)
    if meta.calibration is not None:
        lines += ["", ends_line(meta.calibration)]
    for run in evaluations:
        lines += ["", *_evaluation_lines(run)]
    lines += _making_lines(meta)
    return "\n".join(lines)


def _head_lines(meta: Meta) -> list[str]:
    source, commit = meta.base.spec.source, meta.base.commit
    # The Hub takes `base_model` for a repository: a local path or a random model is none.
    repository = meta.base.repository
    positive, negative = meta.personas[0], meta.personas[1]
    return [
        "---",
        "library_name: pasto",
        "tags: [pasto, steering, antipasto]",
        *([f"base_model: {repository}"] if repository else []),
        "---",
        "",
        f"# {meta.trained_with.name}",
        "",
        f"A dial for `{source}`{f' at `{commit}`' if commit else ''}, trained without labels.",
        f"Coefficient +1: *{positive}* Coefficient -1: *{negative}* 0 is the untouched model.",
    ]


def _certificate_lines(certificate: Certificate | None, imported: bool) -> list[str]:
    if certificate is None and imported:
        return ["No certificate: the published format carries none."]
    if certificate is None:
        return ["No certificate: training was interrupted, or it failed before one could be made."]
    verdict = "passed" if certificate.passed else f"FAILED ({certificate.reason})"
    up, down = certificate.strength["1"], certificate.strength["-1"]
    chosen, rejected = (certificate.persona_prompts[side] for side in ("chosen", "rejected"))
    return [
        f"Certificate: **{verdict}**, on {certificate.num_suffixes} held-out openings under "
        f"{certificate.num_neutral_prompts} held-out neutral prompts (n = {up.n}).",
        "",
        "| | strength, prompt-equivalents [95 %] |",
        "|---|---|",
        f"| coefficient +1 | {format_estimate(up)} |",
        f"| coefficient -1 | {format_estimate(down)} |",
        f"| the positive persona prompt itself | {chosen:+.2f} |",
        f"| the negative persona prompt itself | {rejected:+.2f} |",
        "",
        f"One prompt-equivalent is {certificate.span_nats / 2:.3f} nats per token here.",
        *(text for line in anchor_lines(certificate).values() for text in ("", f"On {line}.")),
    ]


def anchor_lines(certificate: Certificate) -> dict[str, str]:
    """What a dial does to held-out anchors, in words, by what it is called."""
    lines: dict[str, str] = {}
    ends = (("+1", "1"), ("-1", "-1"))
    if (kl := certificate.specificity) is not None:
        each = [
            f"{end} mean {format_estimate(kl[key].kl_mean, signed=False)}, "
            f"95th percentile {format_estimate(kl[key].kl_p95, signed=False)}"
            for end, key in ends
        ]
        n = kl["1"].kl_mean.n
        lines["specificity"] = (
            f"{n} held-out anchors, KL to the base model, nats [95 %]: {'; '.join(each)}"
        )
    if (shared := certificate.opposites) is not None:
        each = [f"{end} {format_estimate(shared[key], signed=False)}" for end, key in ends]
        lines["both answers"] = (
            f"{shared['1'].n} held-out questions asked both ways, how far both answers move to Yes "
            f"or both to No, nats [95 %]: {'; '.join(each)}"
        )
    return lines


def ends_line(found: Calibration) -> str:
    """What +1 and -1 stand for, in words."""
    keys: tuple[tuple[str, Literal["1", "-1"]], ...] = (("+1", "1"), ("-1", "-1"))
    ends = [
        f"{shown} is coefficient {found.coefficients[key]:+.3g} of training (KL p95 to the base "
        f"{format_estimate(found.reached[key], signed=False)} nats)"
        for shown, key in keys
    ]
    return (
        f"Calibrated: {ends[0]}, {ends[1]}; budget {found.kl_p95:g}, "
        f"n = {found.reached['1'].n} neutral prompts{_text_clause(found)}."
    )


def _text_clause(found: Calibration) -> str:
    if found.text is None:
        return ""
    text = found.text
    at = [f"{x.distinct:.2f}" for x in (text["1"], text["-1"], text["0"])]
    n = found.text["0"].n
    return f"; distinct words {at[0]} / {at[1]}, base {at[2]} (n = {n} answers)"


def _evaluation_lines(run: EvalRun) -> list[str]:
    s = run.scores
    lines = [
        f"### {run.title}" + (" (part of it)" if run.partial else ""),
        "",
        *([PUBLISHED_SIGN, ""] if run.label_sign == "original" else []),
        f"Value: {run.value}. n = {s.n_target} rows in {s.num_dilemmas} dilemmas, "
        f"{s.n_control} control rows. Licence {run.licence}; source: {run.source}.",
        "",
        f"Steering F1: {format_estimate(s.steering_f1, digits=1, signed=False)}",
        *_selectivity_lines(run),
        "",
        "| coefficient | mean score, nats | acquiescence, nats | P(Yes)+P(No) | invalid |",
        "|---|---|---|---|---|",
    ]
    for coefficient in run.coefficients:
        e = s.at(coefficient)
        lines.append(
            f"| {format_coefficient(coefficient)} | {format_estimate(e.mean_score)} "
            f"| {format_estimate(e.acquiescence)} | {e.pmass:.3f} | {e.invalid} |"
        )
    return lines


def _selectivity_lines(run: EvalRun) -> list[str]:
    """What moved beside the value; nothing for a file of before it was measured."""
    s = run.scores
    if s.selectivity is None:
        return []
    return [
        "",
        f"Selectivity (slope per nat of control shift): {format_optional(s.selectivity)}. "
        f"At +1 {s.fixed} rows are put right and {s.broken} wrong.",
    ]


def _making_lines(meta: Meta) -> list[str]:
    base, adapter = meta.base, meta.trained_with.adapter
    imported = isinstance(meta.training, ImportRecord)
    directions = "" if imported else f"directions `{adapter.directions}`, "
    kind = f"kind `{meta.kind}`" if meta.bound is None else f"bound `{meta.bound}`"
    facts = {
        "base": f"`{base.spec.source}`, {base.architecture}, "
        f"quantisation {base.spec.quantization}, {base.dtype}",
        "adapter": f"{len(base.fingerprints)} modules, rank {adapter.rank}, {directions}{kind}",
        **_training_facts(meta),
        **({"replies": meta.reply_start.replace("|", "\\|")} if meta.reply_start else {}),
        **_reach(meta),
        "versions": ", ".join(f"{name} {version}" for name, version in meta.versions.items()),
        "made": meta.created,
    }
    table = [f"| {name} | {fact} |" for name, fact in facts.items()]
    # A LoRA has the losses of the paper and none of its rotations.
    method = "AntiPaSTO" if meta.kind == "cayley" else "a LoRA with the losses of AntiPaSTO"
    method = f"The full recipe stands in `pasto.json`. Method: {method} (arXiv 2601.07473)."
    return ["", "## How it was made", "", "| | |", "|---|---|", *table, "", method, ""]


def _reach(meta: Meta) -> dict[str, str]:
    """How far a dial turns, or why that is no angle."""
    if meta.largest_angle is None:
        return {"raw coefficient": "enters linearly: one export serves any by its scale"}
    return {"largest rotation": f"{meta.largest_angle:.1f} degrees at coefficient 1"}


def _training_facts(meta: Meta) -> dict[str, str]:
    training, recipe, pairs = meta.training, meta.trained_with, meta.num_pairs
    if isinstance(training, ImportRecord):
        return {
            "training": f"imported from `{training.imported}`, an adapter of the published code"
        }
    subspace, members = recipe.subspace, recipe.training.members
    best = f"best epoch {training.best_epoch}"
    if members > 1 and not training.interrupted:
        best = f"the mean of {members} members"
    return {
        "pairs": f"{pairs['train']} training, {pairs['validation']} validation, "
        f"{pairs['certificate']} certificate; SHA-256 `{meta.pairs_sha256[:16]}`",
        "loss subspace": f"`{subspace.expression}`, rank {subspace.rank}",
        "neutral branch": "on" if recipe.losses.neutral else "off",
        "training": f"{training.steps} steps, {best}, seed {recipe.training.seed}",
    }
