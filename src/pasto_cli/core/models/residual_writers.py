"""Residual writers: the Linear layers whose output is added to the residual stream.

    h <- h + W_O attention(...)        attention output projection
    h <- h + W_down mlp(...)           MLP down projection, of shared experts too
    h <- h + W_out mixer(...)          of a convolution, of Mamba or of linear attention

They are found by structure, not by name: a few tokens run through the model with gradients, and the
Linear modules that are met first on the way back from a layer's output, with nothing but sums,
scales and norms between, are those that write (`stream_probe`).

Experts that a router chooses among see only some of the tokens, and most hold all their weights in
one parameter: they are left alone, and named (`Survey`).
"""

from typing import Any, NamedTuple

from torch import nn

from pasto_cli.base.errors import PastoError
from pasto_cli.core.models.linears import is_linear
from pasto_cli.core.models.stream_probe import Probe

# Where the list of decoder layers is, from the model; elsewhere it is known by its length.
LAYER_LISTS = (
    "model.layers",  # Llama, Mistral, Qwen, Gemma, Phi-3, ...
    "model.language_model.layers",  # text tower of a multimodal checkpoint
    "language_model.model.layers",
    "transformer.h",  # GPT-2, GPT-J, Falcon, Bloom
    "gpt_neox.layers",
    "model.decoder.layers",  # OPT
    "transformer.blocks",
)


class Writer(NamedTuple):
    """One writer module."""

    path: str
    """Exact path from the model, such as `model.layers.3.mlp.down_proj`."""
    layer: int
    """Index of its layer."""
    module: nn.Module


class LayerKind(NamedTuple):
    """Layers that write to the residual stream in the same way."""

    layers: list[int]
    writers: list[str]
    """Paths from the layer, in their order."""
    left_alone: list[str]
    """Modules whose routed experts write too, and are not adapted."""


def decoder_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The list of decoder layers and its path.

    Raises:
        PastoError: If there is none.
    """
    for path in LAYER_LISTS:
        found = _resolve(model, path)
        if isinstance(found, nn.ModuleList):
            return path, found
    config = getattr(model, "config", None)
    count = getattr(config and config.get_text_config(), "num_hidden_layers", None)
    for path, module in model.named_modules():  # outer lists come first
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return path, module
    raise PastoError(
        f"{type(model).__name__}: no decoder layers found; looked for {', '.join(LAYER_LISTS)}",
        "pasto steers decoder-only language models; encoder and diffusion models have no dial.",
    )


class Survey(NamedTuple):
    """What adds to the residual stream of a model."""

    writers: list[Writer]
    """Linear modules, in order of depth."""
    left_alone: list[list[str]]
    """For each layer the paths, from the layer, of routed experts."""

    def kinds(self) -> list[LayerKind]:
        """The same, with layers of one kind together, in the order of their first layer."""
        own: list[list[str]] = [[] for _ in self.left_alone]
        for writer in self.writers:
            own[writer.layer].append(writer.path.partition(f".{writer.layer}.")[2])
        kinds: dict[tuple[tuple[str, ...], tuple[str, ...]], list[int]] = {}
        for index, (paths, aside) in enumerate(zip(own, self.left_alone, strict=True)):
            kinds.setdefault((tuple(paths), tuple(aside)), []).append(index)
        return [LayerKind(which, *map(list, kind)) for kind, which in kinds.items()]


def find_writers(model: Any) -> list[Writer]:
    """All writers of a model, in order of depth.

    Raises:
        PastoError: If there is none.
    """
    return survey(model).writers


def survey(model: Any) -> Survey:
    """Run a few tokens through a model and find what adds to its residual stream.

    Raises:
        PastoError: If no Linear module does.
    """
    prefix, layers = decoder_layers(model)
    probe = Probe(model, prefix, layers)
    writers, aside = [], []
    for index, layer in enumerate(layers):
        start = f"{prefix}.{index}."
        reached = [p for p, _ in layer.named_modules() if start + p in probe.reached[index]]
        experts: dict[str, None] = {}  # an ordered set
        for path in reached:
            module = layer.get_submodule(path)
            if (routed := probe.routed(start, path)) is not None:
                experts[routed] = None
            elif is_linear(module):
                writers.append(Writer(start + path, index, module))
            else:
                experts[path] = None
        aside.append(list(experts))
    if not writers:
        others = ", ".join(dict.fromkeys(path for paths in aside for path in paths))
        raise PastoError(
            f"{type(model).__name__}: no Linear module of {prefix}.N adds to the residual stream"
            + (f"; {others} do, which are routed experts" if others else ""),
            "Choose another model: pasto adapts the Linear modules that add to that stream.",
        )
    return Survey(writers, aside)


def place_writers(
    writers: list[Writer], num_layers: int, first: float, last: float, max_modules: int
) -> list[Writer]:
    """Writers in layers [floor(first L), floor(last L)), at most `max_modules`, spread evenly.

    Raises:
        PastoError: If no writer lies there.
    """
    # AntiPaSTO (arXiv 2601.07473) adapts the layers before the depth at which its loss is measured.
    low, high = int(first * num_layers), int(last * num_layers)
    inside = [w for w in writers if low <= w.layer < high]
    if not inside:
        needed = next((n for n in range(1, 200) if int(first * n) < int(last * n)), 0)
        if num_layers < needed:
            raise PastoError(
                f"this model has {num_layers} layer{'s' if num_layers > 1 else ''}, of which an "
                f"adapter between {first:.0%} and {last:.0%} of the depth has none; at least "
                f"{needed} are needed",
                "Choose a deeper model, or set adapter.first_layer: 0, adapter.last_layer: 1 and "
                "subspace.depth: 1.",
            )
        raise PastoError(
            f"no writer in layers {low} to {high - 1} of {num_layers}",
            "Widen adapter.first_layer and adapter.last_layer.",
        )
    if len(inside) <= max_modules:
        return inside
    if max_modules == 1:
        return [inside[len(inside) // 2]]
    step = (len(inside) - 1) / (max_modules - 1)
    return [inside[round(i * step)] for i in range(max_modules)]


def _resolve(module: nn.Module, path: str) -> Any:
    """What stands at a dotted path, or None."""
    here: Any = module
    for part in path.split("."):
        here = getattr(here, part, None)
        if here is None:
            return None
    return here
