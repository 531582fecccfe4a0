"""`pasto import`: an adapter of the published AntiPaSTO code as a run of ours; `pasto verify`: is
an adapter whole?"""

import math
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pasto_cli.base import runs
from pasto_cli.base.errors import PastoError
from pasto_cli.base.files import write_text
from pasto_cli.base.provenance import now, versions
from pasto_cli.core.artifact import store
from pasto_cli.core.artifact.antipasto_format import FILES, read_original
from pasto_cli.core.artifact.verify import describe_base, reference_logits, require_fit
from pasto_cli.core.pairs.pairs import make_pairs
from pasto_cli.core.recipe.load import dump_recipe
from pasto_cli.core.recipe.schema import AdapterSpec, ModelSpec, PairsSpec, Recipe
from pasto_cli.core.records.adapter import FORMAT_VERSION, Meta
from pasto_cli.core.report.card import card
from pasto_cli.workflows.dials import open_model
from pasto_cli.workflows.progress import Watcher


def import_adapter(
    source: str,
    base: str | None,
    words: tuple[str, str],
    changes: dict[str, Any],
    root: Path,
    watch: Watcher,
) -> Path:
    """Turn an adapter of the published format into a run folder that every command takes.

    Args:
        source: Folder or Hub id.
        base: Its base model; by default what it names itself.
        words: Positive and negative word that it was trained on; the format does not say.
        changes: To the model section: quantization, device, dtype.
        root: Where runs are.
        watch: Told what happens.

    Returns:
        The run's folder.

    Raises:
        PastoError: If the adapter cannot be read, or was made for another base.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        from pasto_cli.core.artifact import hub

        if source.count("/") != 1 or source.startswith((".", "/", "~")):
            raise PastoError(
                f"{source}: no such folder",
                "Give a folder with adapter_config.json, or a Hub id (user/name).",
            )
        with watch.task(f"fetching {source}"):
            folder = hub.download(source, FILES)
    found = read_original(folder)
    base = base or found.base
    if base is None:
        raise PastoError(
            f"{source} does not say what its base is", "Name it: --base org/name or a folder."
        )
    given = {"source": base} | {key: value for key, value in changes.items() if value is not None}
    angle = math.degrees(found.adapter.max_angle)
    name = (
        "imported-"
        + "".join(
            c if (c.isascii() and c.isalnum()) or c in "._-" else "-" for c in Path(source).name
        )[:50]
    )
    try:
        recipe = Recipe(
            name=name,
            model=ModelSpec.model_validate(given),
            pairs=PairsSpec(words=words),
            adapter=AdapterSpec(
                rank=len(found.adapter.items()[0][1].s), bound="entrywise", max_angle=angle
            ),
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise PastoError(
            f"{'.'.join(map(str, first['loc']))}: {first['msg']}", "See pasto import --help."
        ) from None
    lm = open_model(recipe.model, watch, packing=False)
    adapter = found.adapter.to(lm.device)
    require_fit(lm, adapter, recipe.model.source)
    if biased := [
        p for p in adapter.paths if getattr(lm.model.get_submodule(p), "bias", None) is not None
    ]:
        watch.warn(
            f"the published code drops the bias of {len(biased)} modules, such as {biased[0]}; "
            f"here it is kept"
        )
    first = make_pairs(recipe.pairs).pairs[0]
    meta = Meta(
        format_version=FORMAT_VERSION,
        created=now(),
        base=describe_base(lm, adapter),
        bound="entrywise",
        max_angle=angle,
        largest_angle=adapter.angle(),
        recipe=recipe.model_dump(mode="json"),
        pairs_sha256="",
        num_pairs={},
        personas=[first.chosen, first.rejected],
        training={"imported": source},
        certificate=None,
        reference=reference_logits(lm, adapter),
        versions=versions(),
    )
    run = runs.new_run(name, root)
    with runs.removed_unless(run, (run / "adapter").exists):
        write_text(run / "recipe.yaml", dump_recipe(recipe))
        store.save(run / "adapter", adapter, meta, card(meta, []))
    runs.mark_latest(run)
    return run
