"""`pasto export`: a dial at stated coefficients, in the formats of other engines."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pasto_cli.base import runs
from pasto_cli.base.errors import PastoError
from pasto_cli.base.files import replace_folder
from pasto_cli.core.artifact import export
from pasto_cli.core.steering.steerer import Mix
from pasto_cli.workflows.dials import Part
from pasto_cli.workflows.progress import Watcher

FORMATS = ("lora", "merged", "gguf-lora")
FACTS = "pasto_export.json"


class Exported(NamedTuple):
    """One coefficient in another format."""

    coefficient: float
    path: Path
    """Folder, or file for gguf-lora."""
    size: int
    """Bytes."""
    difference: float | None
    """Largest difference of logits to the dial itself, after a fixed prompt; None for merged
    weights."""
    scale: float | None
    """Largest logit there."""


def export_dial(
    parts: Sequence[Part],
    coefficients: Sequence[float],
    kind: str,
    out: Path | None,
    force: bool,
    watch: Watcher,
) -> list[Exported]:
    """Write one LoRA, merged model or GGUF adapter for each coefficient.

    Args:
        parts: The dial, or several with their own coefficients: they become one export, in which
            ranks add.
        coefficients: Finite numbers, not 0; of several dials, what their own coefficients are
            multiplied by.
        kind: One of `FORMATS`.
        out: Folder for them; `export/` in the (first) run's folder by default, or here for an
            adapter without a run.
        force: Replace what is there.
        watch: Told what is written.

    Raises:
        PastoError: For an unknown format, coefficient 0, a name that exists, or a disk that is
            full.
    """
    if kind not in FORMATS:
        raise PastoError(f"--format {kind!r} is not known", f"Write {', '.join(FORMATS)}.")
    first = parts[0].dial
    mixed = len(parts) > 1
    steerer = Mix([(part.dial.steerer, part.own) for part in parts]) if mixed else first.steerer
    root = out or (runs.run_of(first.folder) or Path()) / "export"
    found = []
    for a in dict.fromkeys(coefficients):
        path = (
            root / f"{kind}{'-mix' if mixed else ''}{a:+g}{'.gguf' if kind == 'gguf-lora' else ''}"
        )
        if path.exists() and not force:
            raise PastoError(
                f"{path} is there already", "Give another --out, or --force to replace it."
            )
        factors = export.joined(
            [export.low_rank(part.dial.adapter, a * part.own) for part in parts]
        )
        difference = scale = None
        if kind != "merged":
            difference, scale = export.largest_difference(first.lm, steerer, a, factors)
        with watch.task(f"writing {path}"):
            if kind == "gguf-lora":
                replace_folder(
                    path, lambda file, f=factors: export.save_gguf_lora(file, first.lm, f)
                )
            elif kind == "lora":
                replace_folder(
                    path,
                    lambda folder, a=a, f=factors: _folder(
                        folder, parts, a, kind, lambda: export.save_lora(folder, first.lm, f)
                    ),
                )
            else:
                replace_folder(
                    path,
                    lambda folder, a=a: _folder(
                        folder,
                        parts,
                        a,
                        kind,
                        lambda: export.save_merged(folder, first.lm, steerer, a),
                    ),
                )
        size = (
            sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
            if path.is_dir()
            else path.stat().st_size
        )
        found.append(Exported(a, path, size, difference, scale))
    return found


def _folder(
    folder: Path, parts: Sequence[Part], a: float, kind: str, fill: Callable[[], None]
) -> None:
    """A folder with an export in it, and where it came from."""
    folder.mkdir()
    fill()
    base = parts[0].dial.meta.base
    dials = [
        {
            "coefficient": a * own,
            "personas": dial.meta.personas,
            "recipe": dial.meta.recipe["name"],
            "versions": dial.meta.versions,
        }
        for dial, own in parts
    ]
    facts: dict[str, Any] = {
        "coefficient": a,
        "format": kind,
        "base": base.spec.model_dump(mode="json"),
        "commit": base.commit,
        "dials": dials,
    }
    (folder / FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
