"""Adapters in the format of the published AntiPaSTO code, read into ours.

adapter_config.json             rank, largest angle (radians), rotation method, base
adapter_model.safetensors       base_model.model.PATH.antipasto_{delta_s,rotation_params_v}
0_svd_bases.safetensors         svd_bases.base_model_model_PATH.{u,s,v}, its dots as underscores

Its forward pass x V R(a) diag(S + a delta) U^T + x W_res^T, bound `entrywise`, is ours with the
residual weight cancelled (see `cayley`); but it drops the bias of a module that has one, and ours
keeps it.
"""

import json
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pasto_cli.base.errors import PastoError, first_problem
from pasto_cli.base.files import read_limited
from pasto_cli.core.steering.cayley import CayleyAdapter, Rotation
from pasto_cli.core.steering.factors import Factors

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
BASES = "0_svd_bases.safetensors"
FILES = (CONFIG, TENSORS, BASES)
_PREFIX, _BASES = "base_model.model.", "svd_bases."
_DELTA, _THETA = ".antipasto_delta_s", ".antipasto_rotation_params_v"
AGAIN = "Is this an adapter of the published AntiPaSTO code, downloaded whole?"


class _Config(BaseModel):
    """What matters of adapter_config.json."""

    model_config = ConfigDict(extra="ignore")

    peft_type: str
    r: int = Field(ge=1)
    max_rotation_angle: float = Field(gt=0.0, lt=torch.pi)
    rotate_u: bool = False
    rotate_v: bool = True
    rotation_method: str = "cayley"
    base_model_name_or_path: str | None = None


class Original(NamedTuple):
    """An adapter of the published code."""

    adapter: CayleyAdapter
    base: str | None
    """What it says that it was trained on."""


def read_original(folder: Path) -> Original:
    """Read an adapter of the published format.

    Args:
        folder: With the three `FILES`.

    Raises:
        PastoError: For missing or damaged files, and for what our rotation cannot say (rotated
            outputs, other maps).
    """
    try:
        config = _Config.model_validate(json.loads(read_limited(folder / CONFIG, 2**20)))
    except ValidationError as error:
        raise PastoError(f"{folder / CONFIG}: {first_problem(error)}", AGAIN) from None
    except (OSError, ValueError, RecursionError) as error:
        raise PastoError(f"{folder / CONFIG}: cannot be read ({error})", AGAIN) from None
    _require_ours(config, folder)
    trained, bases = _tensors(folder / TENSORS), _tensors(folder / BASES)
    rotations = {}
    for key in trained:
        # Paths are read off the trained tensors: in the bases' names dots cannot be told apart.
        if key.endswith(_DELTA):
            path = key.removeprefix(_PREFIX).removesuffix(_DELTA)
            name = _BASES + (_PREFIX + path).replace(".", "_")
            try:
                u, s, v = (bases.pop(f"{name}.{part}") for part in "usv")
                rotations[path] = Rotation(
                    Factors(u, s, v), trained[_PREFIX + path + _THETA], trained[key]
                )
            except KeyError as error:
                raise PastoError(f"{folder}: {error} is missing", AGAIN) from None
    used = {_PREFIX + path + end for path in rotations for end in (_DELTA, _THETA)}
    if not rotations:
        raise PastoError(f"{folder}: no rotations", AGAIN)
    if left := sorted(bases) + sorted(set(trained) - used):
        raise PastoError(f"{folder}: unexpected tensors, such as {left[0]}", AGAIN)
    for path, r in rotations.items():
        if {len(r.s), r.u.shape[-1], r.v.shape[-1], *r.theta.shape, len(r.delta)} != {config.r}:
            raise PastoError(f"{folder}: tensors of {path} are not of rank {config.r}", AGAIN)
    return Original(
        CayleyAdapter(rotations, "entrywise", config.max_rotation_angle).requires_grad_(False),
        config.base_model_name_or_path,
    )


def _require_ours(config: _Config, folder: Path) -> None:
    """See that the adapter is a Cayley rotation of V alone: what R(a) of ours stands for."""
    rotated = (config.rotate_u, config.rotate_v, config.rotation_method)
    if config.peft_type != "APASTOADAPTER" or rotated != (False, True, "cayley"):
        kind = (
            f"{config.peft_type}, {config.rotation_method}, "
            f"rotate_u {config.rotate_u}, rotate_v {config.rotate_v}"
        )
        raise PastoError(
            f"{folder}: this kind of adapter cannot be imported ({kind})",
            "Only Cayley rotations of the input directions can (rotate_v true, rotate_u false).",
        )


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        found = {key: x.float() for key, x in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise PastoError(f"{path}: damaged or missing ({error})", AGAIN) from None
    if bad := sorted(
        key for key, x in found.items() if x.dim() == 0 or not bool(torch.isfinite(x).all())
    ):
        raise PastoError(f"{path}: {bad[0]} is no table of finite numbers", AGAIN)
    return found
