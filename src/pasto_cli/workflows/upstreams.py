"""`pasto serve --engine vllm | llama.cpp`: a stock engine behind pasto, running already or started.

The base's weights are the engine's alone: here its tokenizer, its template and the shapes of its
modules are enough to make the exact LoRA of any position.
"""

import hashlib
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePath

from pasto_cli.base.errors import PastoError
from pasto_cli.base.files import replace_folder
from pasto_cli.core.artifact import export
from pasto_cli.core.artifact.store import TENSORS
from pasto_cli.core.models.loaded import LoadedModel
from pasto_cli.core.models.sources import gguf_file, resolve_source
from pasto_cli.core.serving.engine import Engine, Position
from pasto_cli.core.serving.limits import Limits
from pasto_cli.core.serving.llama_cpp_engine import (
    Grid,
    LlamaCppEngine,
    adapter_paths,
    slot_context,
)
from pasto_cli.core.serving.upstream import Upstream
from pasto_cli.core.serving.upstream_engine import ServedBase
from pasto_cli.core.serving.vllm_engine import Exports, VllmEngine
from pasto_cli.core.steering.coefficients import from_words, in_words
from pasto_cli.workflows.dials import Dial
from pasto_cli.workflows.engine_process import EngineProcess
from pasto_cli.workflows.progress import Watcher

IN_PROCESS, VLLM, LLAMA_CPP = "transformers", "vllm", "llama.cpp"
VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What --max-lora-rank may be."""
MOST_TOGETHER = 8
"""Positions that share a batch of a vLLM that is started here; each takes memory of its own."""


@dataclass(frozen=True)
class UpstreamOptions:
    """What a user says about an engine that is not in this process."""

    engine: str
    """`vllm` or `llama.cpp`."""
    url: str | None = None
    """Of one that runs; None starts one."""
    key: str | None = None
    """What it wants as a bearer token."""
    command: str | None = None
    """Starts it; None for the one on PATH."""
    exact: bool = False
    """Refuse positions that llama.cpp does not have, instead of taking the nearest."""
    grid: Sequence[float] = (-1.0, -0.5, 0.5, 1.0)
    """Positions of each dial that llama.cpp is started with."""
    loaded: int = 32
    """Most positions that stay loaded in vLLM."""
    lora_dir: Path | None = None
    """Folder for exports, which the engine sees under the same path; None for a temporary one."""


def upstream_options(
    engine: str,
    *,
    url: str | None,
    key: str | None,
    command: str | None,
    exact: bool,
    grid: str,
    loaded: int,
    lora_dir: Path | None,
) -> UpstreamOptions | None:
    """What the command line says about the engine; None for the one in this process.

    Raises:
        PastoError: For an unknown engine, a grid that is none, or options that another engine has.
    """
    if engine not in (IN_PROCESS, VLLM, LLAMA_CPP):
        raise PastoError(
            f"--engine {engine!r} is not known", f"Choose {IN_PROCESS}, {VLLM} or {LLAMA_CPP}."
        )
    if engine == IN_PROCESS:
        given = {"--upstream": url, "--engine-command": command, "--lora-dir": lora_dir}
        if named := [flag for flag, value in given.items() if value is not None]:
            raise PastoError(
                f"{named[0]} means nothing to the engine {IN_PROCESS}",
                f"Add --engine {VLLM} or --engine {LLAMA_CPP}.",
            )
    if exact and engine != LLAMA_CPP:
        raise PastoError(f"every position of {engine} is exact", "Leave --exact out.")
    if engine == IN_PROCESS:
        return None
    if url is not None and not url.startswith(("http://", "https://")):
        raise PastoError(f"--upstream {url} is no address", "Write http://HOST:PORT.")
    points = _points(grid)
    return UpstreamOptions(engine, url, key, command, exact, points, loaded, lora_dir)


def _points(grid: str) -> list[float]:
    """Numbers with commas between them, 0 left out."""
    try:
        points = [float(word) for word in grid.split(",")]
        if not all(map(math.isfinite, points)) or not any(points):
            raise ValueError
    except ValueError:
        raise PastoError(
            f"--grid {grid!r} is no list of coefficients", "Write --grid=-1,-0.5,0.5,1."
        ) from None
    return [c for c in dict.fromkeys(points) if c != 0.0]


def open_engine(
    dials: Mapping[str, Dial], options: UpstreamOptions, limits: Limits, watch: Watcher
) -> Engine:
    """An engine for some dials, behind a server that answers when this returns.

    Args:
        dials: By name, all of one base; skeletons will do.
        options: Which engine, and where.
        limits: How much is taken on.
        watch: Told what is exported and started.

    Raises:
        PastoError: If the engine cannot be started or reached, or lacks the dials' LoRAs.
    """
    first = next(iter(dials.values()))
    trained = first.meta.base.spec.quantization
    if trained != "none":
        watch.warn(f"trained on a base of quantisation {trained}: {options.engine} has its own")
    with ExitStack() as stack:
        folder = options.lora_dir
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pasto-")))
        exports = _exports(dials, folder.absolute(), gguf=options.engine == LLAMA_CPP)
        start = _vllm if options.engine == VLLM else _llama_cpp
        engine = start(dials, exports, options, limits, watch, stack)
        engine.owned = stack.pop_all()
        return engine


def _vllm(
    dials: Mapping[str, Dial],
    exports: Exports,
    options: UpstreamOptions,
    limits: Limits,
    watch: Watcher,
    stack: ExitStack,
) -> VllmEngine:
    first = next(iter(dials.values()))
    url = options.url
    if url is None:
        source = resolve_source(first.lm.spec, watch.note).source
        if source is None:
            raise PastoError(
                f"{first.lm.spec.source} is in memory only, and vLLM reads folders",
                "Make room where the cache is, or set PASTO_CACHE to another disk.",
            )
        revision = first.lm.spec.revision
        rank = sum(_rank(dial) for dial in dials.values())
        arguments = [source, "--dtype", first.meta.base.dtype, "--enable-lora"]
        arguments += ["--revision", revision] if revision else []
        arguments += ["--max-lora-rank", str(_allowed(rank))]
        arguments += ["--max-loras", str(min(options.loaded, MOST_TOGETHER))]
        arguments += ["--max-cpu-loras", str(max(options.loaded, MOST_TOGETHER))]
        arguments += ["--max-num-seqs", str(limits.rows)]
        process = EngineProcess(
            options.command or "vllm serve",
            arguments,
            exports.folder / "vllm.log",
            {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"},
        )
        stack.callback(process.close)
        url = process.wait(watch)
    return VllmEngine(
        Upstream(url, options.key),
        _base(first.lm),
        list(dials),
        exports,
        loaded=options.loaded,
        limits=limits,
    )


def _llama_cpp(
    dials: Mapping[str, Dial],
    exports: Exports,
    options: UpstreamOptions,
    limits: Limits,
    watch: Watcher,
    stack: ExitStack,
) -> LlamaCppEngine:
    first = next(iter(dials.values()))
    grids = {name: _grid(dial, options.grid) for name, dial in dials.items()}
    url = options.url
    if url is None:
        command = options.command or "llama-server"
        arguments = [] if _names_model(command) else ["-m", str(_own_gguf(first, command))]
        with watch.task("exporting the positions"):
            for position in [{name: c} for name, grid in grids.items() for c in grid]:
                path = exports.folder / exports.name(position)
                exports.write(position, path)
                arguments += ["--lora", str(path)]
        arguments += ["--lora-init-without-apply", "--parallel", str(limits.rows), "--kv-unified"]
        process = EngineProcess(command, arguments, exports.folder / "llama-server.log", {})
        stack.callback(process.close)
        url = process.wait(watch)
    upstream = Upstream(url, options.key)
    paths = adapter_paths(upstream)
    base = _base(first.lm)
    context = slot_context(upstream) or base.context
    return LlamaCppEngine(
        upstream,
        base._replace(context=min(base.context, context)),
        {name: _found(name, dials, paths, url) for name in dials},
        len(paths),
        exact=options.exact,
        limits=limits,
    )


def _grid(dial: Dial, grid: Sequence[float]) -> list[float]:
    """Positions that are exported for llama.cpp."""
    # One LoRA of a linear dial is all of it.
    return [1.0] if dial.meta.kind == "lora" else list(grid)


def _found(name: str, dials: Mapping[str, Dial], paths: Sequence[str], url: str) -> Grid:
    """The LoRAs of a dial among those of a llama-server, by the names that exports have."""
    ids = {c: number for number, path in enumerate(paths) for c in _position(name, dials, path)}
    if not ids:
        several = len(dials) > 1
        example = f"{name}-plus1.00.gguf" if several else "gguf-lora-plus1.00.gguf"
        raise PastoError(
            f"the llama-server at {url} has no LoRA of {name}",
            f"pasto export --format gguf-lora -c -1 -c 1, and start it with --lora {example} for "
            "each and --lora-init-without-apply.",
        )
    dial = dials[name]
    return Grid(ids, dial.raw if dial.meta.kind == "lora" else None)


def _position(name: str, dials: Mapping[str, Dial], path: str) -> list[float]:
    """The coefficient that a file is named after, if it is one of this dial."""
    stem = PurePath(path).name.removesuffix(".gguf")
    c = from_words(stem)
    if c is None:
        return []
    own = f"{name}-{in_words(c)}"
    # As `pasto export` writes it, which does not know what a dial is called here.
    alone = len(dials) == 1 and stem == f"gguf-lora-{in_words(c)}"
    return [c] if alone or stem == own or stem.startswith(f"{own}-") else []


def _exports(dials: Mapping[str, Dial], folder: Path, gguf: bool) -> Exports:
    """How positions of some dials become LoRAs in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    lm = next(iter(dials.values())).lm
    digests = {name: _digest(dial.folder / TENSORS) for name, dial in dials.items()}

    def name(position: Position) -> str:
        parts = [f"{dial}-{in_words(c)}" for dial, c in position.items()]
        content = [(digests[dial], dials[dial].raw(c)) for dial, c in position.items()]
        mark = hashlib.sha256(repr(content).encode()).hexdigest()[:8]
        return "-".join([*parts, mark]) + (".gguf" if gguf else "")

    def write(position: Position, path: Path) -> None:
        turned = [(dials[dial].adapter, dials[dial].raw(c)) for dial, c in position.items()]
        factors = export.joined([export.low_rank(adapter, a) for adapter, a in turned])
        replace_folder(path, _writer(lm, factors, gguf))

    return Exports(folder, name, write)


def _writer(
    lm: LoadedModel, factors: dict[str, export.LowRank], gguf: bool
) -> Callable[[Path], None]:
    def write(scratch: Path) -> None:
        if gguf:
            export.save_gguf_lora(scratch, lm, factors)
        else:
            scratch.mkdir()
            export.save_lora(scratch, lm, factors)

    return write


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _base(lm: LoadedModel) -> ServedBase:
    context = getattr(lm.model.config.get_text_config(), "max_position_embeddings", None)
    vocabulary = lm.model.get_input_embeddings().weight.shape[0]
    return ServedBase(lm.chat, vocabulary, context or 2**31)


def _rank(dial: Dial) -> int:
    return max(own.down.shape[1] for _, own in dial.adapter.items())


def _allowed(rank: int) -> int:
    """The smallest rank that vLLM takes and that is enough."""
    found = next((allowed for allowed in VLLM_RANKS if allowed >= rank), None)
    if found is None:
        raise PastoError(
            f"the dials' ranks add up to {rank}; vLLM takes {VLLM_RANKS[-1]} at most",
            "Serve fewer dials at once.",
        )
    return found


def _names_model(command: str) -> bool:
    return any(word in ("-m", "--model", "-hf", "--hf-repo") for word in command.split())


def _own_gguf(dial: Dial, command: str) -> Path:
    """The base as a file for llama.cpp."""
    file = gguf_file(dial.lm.spec)
    if file is None:
        raise PastoError(
            f"llama.cpp needs {dial.lm.spec.source} as a GGUF file",
            "Convert it with llama.cpp's convert_hf_to_gguf.py and name it: "
            f'--engine-command "{command} -m BASE.gguf".',
        )
    return file
