"""Which dials a command turns, and how far: --adapter, --coeff and --strength together."""

from typing import NamedTuple

from pasto_cli.base.errors import PastoError
from pasto_cli.core.models.loaded import LoadedModel
from pasto_cli.core.steering.steerer import AdapterSteerer, Mix
from pasto_cli.workflows.dials import Part, open_dial, open_parts, split_part
from pasto_cli.workflows.progress import Watcher


class Dials(NamedTuple):
    """One dial, or several as one."""

    parts: list[Part]
    steerer: AdapterSteerer | Mix
    coefficients: list[float]
    """What the steerer is asked for."""

    @property
    def lm(self) -> LoadedModel:
        """The base that they share."""
        return self.parts[0].dial.lm


def open_dials(
    names: list[str] | None,
    coeff: list[float] | None,
    strength: list[float] | None,
    otherwise: list[float],
    watch: Watcher,
    quantization: str | None,
    device: str | None,
    verify: bool,
) -> Dials:
    """Load what a command line names.

    Args:
        names: `NAME` or `NAME:COEFFICIENT`; None for the latest run.
        coeff: Coefficients of one dial; of several, what their own are multiplied by.
        strength: Per cent of the calibrated coefficient, instead of `coeff`.
        otherwise: Coefficients where neither is given.
        watch: Told what is loaded.
        quantization: Of the base, instead of as trained.
        device: To load it on.
        verify: Check fingerprints and reference logits.

    Raises:
        PastoError: For options that contradict each other, or a strength without a calibration.
    """
    if coeff and strength:
        raise PastoError("--coeff and --strength say the same in two ways", "Give one of them.")
    if names is None or len(names) == 1:
        name, own = split_part(names[0]) if names else (None, None)
        if own is not None and (coeff or strength):
            raise PastoError(
                f"{names[0] if names else ''} has its coefficient already",
                "Leave --coeff and --strength out.",
            )
        dial = open_dial(name, watch, quantization, device, verify, packing=False)
        kept = dial.meta.calibration
        if strength and kept and kept.quantization != dial.lm.spec.quantization:
            watch.warn(
                f"calibrated on a base of quantisation {kept.quantization}, not "
                f"{dial.lm.spec.quantization}"
            )
        found = (
            coeff
            or ([dial.meta.coefficient(s) for s in strength] if strength else None)
            or ([own] if own is not None else otherwise)
        )
        return Dials([Part(dial, 1.0)], dial.steerer, found)
    if strength:
        raise PastoError(
            "--strength is for one dial", "Give each adapter its coefficient: -a A:+1 -a B:-0.5"
        )
    parts = open_parts(names, watch, quantization, device, verify, packing=False)
    return Dials(parts, Mix([(part.dial.steerer, part.own) for part in parts]), coeff or [1.0])
