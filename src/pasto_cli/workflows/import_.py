"""`pasto import`: an adapter of the published AntiPaSTO code as a run of ours."""

import math
from pathlib import Path

from pydantic import ValidationError

from pasto_cli.base import runs
from pasto_cli.base.errors import PastoError, first_problem
from pasto_cli.base.files import write_text
from pasto_cli.base.hub_ids import is_hub_id
from pasto_cli.base.paths import expanded
from pasto_cli.base.provenance import now, versions
from pasto_cli.core.artifact import store
from pasto_cli.core.artifact.antipasto_format import FILES, Original, read_original
from pasto_cli.core.artifact.verify import describe_base, reference_logits, require_fit
from pasto_cli.core.models.loaded import LoadedModel
from pasto_cli.core.pairs.pairs import make_pairs
from pasto_cli.core.recipe.load import dump_recipe
from pasto_cli.core.recipe.schema import AdapterSpec, ModelSpec, PairsSpec, Recipe
from pasto_cli.core.records.adapter import FORMAT_VERSION, Meta
from pasto_cli.core.records.training import ImportRecord
from pasto_cli.core.report.card import card
from pasto_cli.core.steering.adapter import Adapter
from pasto_cli.workflows.dials import AS_TRAINED, LoadOptions, open_model
from pasto_cli.workflows.progress import Watcher, mark_latest


def import_adapter(
    source: str,
    base: str | None,
    words: tuple[str, str],
    root: Path,
    watch: Watcher,
    options: LoadOptions = AS_TRAINED,
) -> Path:
    """Turn an adapter of the published format into a run folder that every command takes.

    Args:
        source: Folder or Hub id.
        base: Its base model; by default what it names itself.
        words: Positive and negative word that it was trained on; the format does not say.
        root: Where runs are.
        watch: Told what happens.
        options: How the base is loaded.

    Returns:
        The run's folder.

    Raises:
        PastoError: If the adapter cannot be read, or was made for another base.
    """
    found = read_original(_fetch(source, watch))
    recipe = _recipe(source, base or found.base, words, found, options)
    lm = open_model(recipe.model, watch, packing=False)
    adapter = found.adapter.to(lm.device)
    require_fit(lm, adapter, recipe.model.source)
    _warn_of_biases(lm, adapter, watch)
    meta = _describe(source, lm, adapter, recipe)
    run = runs.new_run(recipe.name, root)
    with runs.removed_unless(run, (run / "adapter").exists):
        write_text(run / "recipe.yaml", dump_recipe(recipe))
        store.save(run / "adapter", adapter, meta, card(meta, []))
    mark_latest(run, watch)
    return run


def _fetch(source: str, watch: Watcher) -> Path:
    """Local folder of a published adapter."""
    folder = expanded(source)
    if folder.is_dir():
        return folder
    from pasto_cli.core.artifact import hub

    if not is_hub_id(source):
        raise PastoError(
            f"{source}: no such folder",
            "Give a folder with adapter_config.json, or a Hub id (user/name).",
        )
    with watch.task(f"fetching {source}"):
        return hub.download(source, FILES)


def _recipe(
    source: str, base: str | None, words: tuple[str, str], found: Original, options: LoadOptions
) -> Recipe:
    """What the adapter would have been trained with here, as far as its format says."""
    if base is None:
        raise PastoError(
            f"{source} does not say what its base is", "Name it: --base org/name or a folder."
        )
    model: dict[str, str] = {"source": base}
    if options.quantization is not None:
        model["quantization"] = options.quantization
    if options.device is not None:
        model["device"] = options.device
    rank = len(found.adapter.items()[0][1].s)
    angle = math.degrees(found.adapter.max_angle)
    try:
        return Recipe(
            name="imported-" + _folder_name(source),
            model=ModelSpec.model_validate(model),
            pairs=PairsSpec(words=words),
            adapter=AdapterSpec(rank=rank, bound="entrywise", max_angle=angle),
        )
    except ValidationError as error:
        raise PastoError(first_problem(error), "See pasto import --help.") from None


def _folder_name(source: str) -> str:
    """The last part of a folder or Hub id, in characters that may stand in a recipe's name."""
    kept = (c if (c.isascii() and c.isalnum()) or c in "._-" else "-" for c in Path(source).name)
    return "".join(kept)[:50]


def _warn_of_biases(lm: LoadedModel, adapter: Adapter, watch: Watcher) -> None:
    modules = {path: lm.model.get_submodule(path) for path in adapter.paths}
    biased = [path for path, m in modules.items() if getattr(m, "bias", None) is not None]
    if biased:
        watch.warn(
            f"the published code drops the bias of {len(biased)} modules, such as {biased[0]}; "
            f"here it is kept"
        )


def _describe(source: str, lm: LoadedModel, adapter: Adapter, recipe: Recipe) -> Meta:
    """pasto.json of an imported adapter: no certificate, no hash of the pairs."""
    first = make_pairs(recipe.pairs).pairs[0]
    return Meta(
        format_version=FORMAT_VERSION,
        created=now(),
        base=describe_base(lm, adapter),
        bound="entrywise",
        max_angle=recipe.adapter.max_angle,
        largest_angle=adapter.angle(),
        recipe=recipe.model_dump(mode="json"),
        pairs_sha256="",
        num_pairs={},
        personas=[first.chosen, first.rejected],
        training=ImportRecord(imported=source),
        certificate=None,
        reference=reference_logits(lm, adapter),
        versions=versions(),
    )
