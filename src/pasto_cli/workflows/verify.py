"""`pasto verify`: is an adapter whole, and is this its base?"""

from pathlib import Path
from typing import NamedTuple

from pasto_cli.core.artifact.verify import compare_reference, same_bytes
from pasto_cli.workflows.dials import AS_TRAINED, LoadOptions, open_dial
from pasto_cli.workflows.progress import Watcher


class Verified(NamedTuple):
    """What was compared, all of it equal."""

    folder: Path
    base: str
    modules: int
    """Adapted weights."""
    hashed: bool
    """Whether the tensors' hash was stored and is the same; the first adapters had none."""
    same_bytes: bool
    """Whether adapted weights are the base's byte for byte."""
    evidence: str
    """By what they are known where they are not: another precision or quantisation."""
    differences: dict[str, float]
    """Coefficient -> largest difference of the reference logits to those stored."""
    certified: bool | None
    """Whether the certificate passed; None without one."""


def verify(name: str | None, watch: Watcher, options: LoadOptions = AS_TRAINED) -> Verified:
    """Load an adapter with every check: strict keys, fingerprints of the base, reference logits.

    Raises:
        PastoError: On any difference.
    """
    dial = open_dial(name, watch, options, packing=False)
    found = compare_reference(dial.lm, dial.adapter, dial.meta)
    certificate = dial.meta.certificate
    return Verified(
        dial.folder,
        dial.meta.base.spec.source,
        len(dial.adapter.paths),
        dial.meta.tensors_sha256 is not None,
        same_bytes(dial.lm, dial.meta.base),
        dial.adapter.MODULE.EVIDENCE,
        found,
        certificate.passed if certificate else None,
    )
