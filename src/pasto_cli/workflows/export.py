"""`pasto export`: a dial at stated coefficients, in the formats of other engines."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pasto_cli.base import runs
from pasto_cli.base.errors import PastoError
from pasto_cli.base.files import replace_folder
from pasto_cli.core.artifact import export
from pasto_cli.core.models.loaded import LoadedModel
from pasto_cli.core.steering.coefficients import in_words
from pasto_cli.workflows.dials import DialSet
from pasto_cli.workflows.progress import Watcher

FORMATS = ("lora", "merged", "gguf-lora")
FACTS = "pasto_export.json"
"""File in an exported folder that says where the export came from."""


class Exported(NamedTuple):
    """One coefficient in another format."""

    coefficient: float
    path: Path
    """Folder, or file for gguf-lora."""
    size: int
    """Bytes."""
    difference: float | None
    """Largest difference of logits to the dial's after a fixed prompt; None for merged weights."""
    scale: float | None
    """Largest logit there."""


def check_export(kind: str, coefficients: Sequence[float], out: Path | None) -> None:
    """Refuse what cannot be exported, before a model is loaded.

    Raises:
        PastoError: For an unknown format, coefficient 0, or a file where a folder is to be.
    """
    if out is not None and out.exists() and not out.is_dir():
        raise PastoError(f"{out} is a file: exports go into a folder", "Give another --out.")
    if kind not in FORMATS:
        raise PastoError(f"--format {kind!r} is not known", f"Write {', '.join(FORMATS)}.")
    if 0.0 in coefficients:
        raise PastoError(
            "coefficient 0 is the base model: there is nothing to export", "Leave it out."
        )


def export_dials(
    dials: DialSet, kind: str, out: Path | None, watch: Watcher, *, force: bool = False
) -> list[Exported]:
    """Write one LoRA, merged model or GGUF adapter for each coefficient of a set of dials.

    Args:
        dials: Several of them become one export, in which their ranks add.
        kind: One of `FORMATS`.
        out: Folder for them; `export/` in the (first) run's folder by default, or here for an
            adapter without a run.
        watch: Told what is written.
        force: Replace what is there.

    Raises:
        PastoError: For an unknown format, coefficient 0, a name that exists, or a disk that is
            full.
    """
    check_export(kind, dials.coefficients, out)
    root = out or (runs.run_of(dials.dials[0].folder) or Path()) / "export"
    found = []
    for a in dict.fromkeys(dials.coefficients):
        path = root / _name(dials, kind, a)
        if path.exists() and not force:
            raise PastoError(
                f"{path} is there already", "Give another --out, or --force to replace it."
            )
        found.append(_export(dials, kind, a, path, watch))
    return found


def _name(dials: DialSet, kind: str, a: float) -> str:
    """File or folder of one export: `lora-plus1.00`, `merged-mix-minus0.50`, ..."""
    mix = "-mix" if len(dials.dials) > 1 else ""
    return f"{kind}{mix}-{in_words(a)}{'.gguf' if kind == 'gguf-lora' else ''}"


def _export(dials: DialSet, kind: str, a: float, path: Path, watch: Watcher) -> Exported:
    lm = dials.lm
    turned = [
        (dial.adapter, dial.raw(a * own)) for dial, own in zip(dials.dials, dials.own, strict=True)
    ]
    factors = export.joined([export.low_rank(adapter, at) for adapter, at in turned])
    difference = scale = None
    if kind != "merged":
        difference, scale = export.largest_difference(lm, dials.steerer, a, factors)

    def write(scratch: Path) -> None:
        if kind == "gguf-lora":  # a file of its own; what it came from has no place beside it
            export.save_gguf_lora(scratch, lm, factors)
            return
        scratch.mkdir()
        if kind == "lora":
            export.save_lora(scratch, lm, factors)
        else:
            if getattr(lm.model, "hf_quantizer", None) is not None:
                watch.note(f"the base is quantised; plain {_dtype(lm)} weights are written")
            # A quantised base is used up by the first coefficient; the next one finds it plain.
            export.save_merged(scratch, export.dequantised(lm), turned)
        facts = json.dumps(_facts(dials, kind, a), indent=1)
        (scratch / FACTS).write_text(facts + "\n", encoding="utf-8")

    with watch.task(f"writing {path}"):
        replace_folder(path, write)
    return Exported(a, path, _size(path), difference, scale)


def _dtype(lm: LoadedModel) -> str:
    return str(lm.dtype).removeprefix("torch.")


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _facts(dials: DialSet, kind: str, a: float) -> dict[str, Any]:
    """Where an export came from."""
    base = dials.dials[0].meta.base
    return {
        "coefficient": a,
        "format": kind,
        "base": base.spec.model_dump(mode="json"),
        "commit": base.commit,
        "dials": [
            {
                "coefficient": a * own,
                "kind": dial.meta.kind,
                "raw_coefficient": dial.raw(a * own),
                "personas": dial.meta.personas,
                "recipe": dial.recipe.name,
                "versions": dial.meta.versions,
            }
            for dial, own in zip(dials.dials, dials.own, strict=True)
        ],
    }
