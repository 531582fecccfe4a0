"""`pasto verify`: is an adapter whole, and is this its base?"""

from pathlib import Path
from typing import NamedTuple

from pasto_cli.core.artifact.verify import compare_reference, same_bytes
from pasto_cli.workflows.dials import open_dial
from pasto_cli.workflows.progress import Watcher


class Verified(NamedTuple):
    """What was compared, all of it equal."""

    folder: Path
    base: str
    modules: int
    """Adapted weights."""
    hashed: bool
    """Whether the tensors' hash was stored and is the same; adapters from before there was one have
    none."""
    same_bytes: bool
    """Whether every adapted weight is the base's byte for byte; else (another precision) by its
    directions."""
    differences: dict[str, float]
    """Coefficient -> largest difference of the reference logits to those stored."""
    certified: bool | None
    """Whether the certificate passed; None without one."""


def verify(
    name: str | None, quantization: str | None, device: str | None, watch: Watcher
) -> Verified:
    """Load an adapter with every check: strict keys, fingerprints of the base, reference logits.

    Raises:
        PastoError: On any difference.
    """
    dial = open_dial(name, watch, quantization, device, packing=False)
    found = compare_reference(dial.lm, dial.adapter, dial.meta)
    certificate = dial.meta.certificate
    return Verified(
        dial.folder,
        dial.meta.base.spec.source,
        len(dial.adapter.paths),
        dial.meta.tensors_sha256 is not None,
        same_bytes(dial.lm, dial.meta.base),
        found,
        certificate.passed if certificate else None,
    )
