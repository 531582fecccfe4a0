"""Several processes: the same adapter and the same answers as one."""

import json
import os
import socket

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import multiprocessing

from pasto_cli.core.models import distributed
from tests.support.forks import fork_server


def meet(rank, world, port):
    """What a launcher and `pasto` do before a command runs."""
    torch.set_num_threads(1)
    os.environ |= {
        "WORLD_SIZE": str(world),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
    }
    distributed.init()
    assert (distributed.rank(), distributed.size()) == (rank, world)


def train_and_ask(rank, world, port, folder, spec):
    """A short training in float64, questions, texts and disturbances; every process keeps what it
    ended with."""
    from pasto_cli.core.evaluation.certificate import measure_persona_llr
    from pasto_cli.core.evaluation.disturbance import (
        coefficient_at_budget,
        make_probe,
        measure_disturbance,
    )
    from pasto_cli.core.evaluation.questions import ask, score_answers
    from pasto_cli.core.models.chat import tokenise_pairs
    from pasto_cli.core.models.linears import dense_weight
    from pasto_cli.core.models.loading import load_model
    from pasto_cli.core.models.residual_writers import find_writers
    from pasto_cli.core.pairs.anchors import Anchor
    from pasto_cli.core.pairs.pairs import make_pairs
    from pasto_cli.core.recipe.losses_spec import LossesSpec
    from pasto_cli.core.recipe.schema import (
        AdapterSpec,
        ModelSpec,
        PairsSpec,
        SubspaceSpec,
        TrainingSpec,
    )
    from pasto_cli.core.steering.factors import decompose, select_directions
    from pasto_cli.core.steering.generation import generate_many
    from pasto_cli.core.steering.kinds import create_adapter
    from pasto_cli.core.steering.steerer import AdapterSteerer
    from pasto_cli.core.training.anchors import Anchors
    from pasto_cli.core.training.objective import Objective
    from pasto_cli.core.training.preference import Preferences
    from pasto_cli.core.training.subspaces import random_basis
    from pasto_cli.core.training.trainer import TrainingSplit, train
    from tests.unit.core.training.test_preference import answers_of

    if world > 1:
        meet(rank, world, port)
    lm = load_model(ModelSpec(source="random:gpt2", device="cpu"))
    lm.model.double()
    pairs = make_pairs(
        PairsSpec(words=("honest", "dishonest"), templates=("Be {persona} one.",), count=11)
    ).pairs
    tokens, _ = tokenise_pairs(
        [p.model_copy(update={"neutral": p.neutral[:12]}) for p in pairs], lm.chat
    )
    kept = {
        w.path: select_directions(decompose(dense_weight(w.module)), torch.arange(6))
        for w in find_writers(lm.model)[2:6]
    }
    adapter = create_adapter(kept, AdapterSpec(rank=6), 0).double()
    basis = random_basis(lm.hidden_size, 4, 0).columns.double()
    losses, anchors = LossesSpec.model_validate(spec), None
    if losses.anchor is not None:
        asked = [Anchor(f"What is {n} and {n}?", "own") for n in range(6)]
        anchors = Anchors(lm, asked, losses.anchor, 0)
    preferences = None
    if losses.preference is not None:
        preferences = Preferences(lm, answers_of(), losses.preference, 0)
    objective = Objective(
        lm,
        basis,
        losses,
        SubspaceSpec(),
        budget=512,
        cache_mb=64,
        anchors=anchors,
        preferences=preferences,
    )
    # Seven pairs in batches of three: shares of unlike size, and a batch that leaves some process
    # without a pair.
    train(
        objective,
        adapter,
        TrainingSplit(tokens[:7], tokens[7:9]),
        TrainingSpec(epochs=2, batch_size=3, lr=5e-3),
    )
    steerer = AdapterSteerer(adapter, lm)
    questions = [ask(lm.chat, f"Is {n} even?", "I say", ("Yes", "No")) for n in range(5)]
    progress = []
    answers = score_answers(lm, steerer, questions, [-1.0, 1.0], 64, progress.append)
    assert sum(progress) == len(questions)
    llr = measure_persona_llr(lm, steerer, tokens[9:], [1.0, -1.0], 64)
    # Fewer prompts than four processes, of unlike length.
    prompts = ["Name a tree.", "What do you see from the window today?", "Why?"]
    progress = []
    texts = generate_many(lm, steerer, prompts, [-1.0, 1.0], 6, 2, progress.append)
    assert sum(progress) == len(prompts)
    probe = make_probe(lm, prompts, 4)
    moved = measure_disturbance(lm, steerer, probe, 1.0)
    end = coefficient_at_budget(lm, steerer, probe, -1.0, moved.kl_p95)
    found = {
        "adapter": torch.cat([p.detach().flatten() for p in adapter.parameters()]),
        "answers": answers.log_p,
        "persona_llr": torch.tensor([*llr.steered[1.0], *llr.steered[-1.0], *llr.chosen]),
        "moved": torch.tensor([x for tokens in [*moved.kl, *moved.nll] for x in tokens]),
        "end": torch.tensor(end, dtype=torch.float64),
    }
    said = json.dumps([answers.top_token, texts, probe.answers])
    save_file(found, f"{folder}/{world}-{rank}.safetensors", {"said": said})
    if world > 1:
        distributed.leave(0)


def read(path):
    """(tensors, answers' first words and texts) of a process."""
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()["said"]  # noqa: SIM118


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(
    ("world", "spec"),
    [
        (2, "original"),
        (4, {}),
        (3, {"anchor": {"count": 4, "tokens": 3, "aggregate": "rms"}}),
        (3, {"preference": {"count": 2}}),
    ],
    ids=["two, original losses", "four", "three, anchors", "three, preference"],
)
def test_processes_end_with_the_adapter_of_one(tmp_path, world, spec):
    train_and_ask(0, 1, 0, tmp_path, spec)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    fork_server()
    multiprocessing.start_processes(
        train_and_ask, (world, port, str(tmp_path), spec), world, start_method="forkserver"
    )
    one, said = read(tmp_path / "1-0.safetensors")
    for rank in range(world):
        other, also_said = read(tmp_path / f"{world}-{rank}.safetensors")
        torch.testing.assert_close(other["adapter"], one["adapter"], rtol=0, atol=1e-9)
        torch.testing.assert_close(other["answers"], one["answers"], rtol=0, atol=1e-8)
        for name in ("persona_llr", "moved", "end"):
            torch.testing.assert_close(other[name], one[name], rtol=1e-7, atol=1e-8)
        assert also_said == said


def test_one_process_is_left_alone():
    tensor = torch.ones(3, requires_grad=True)
    assert distributed.size() == 1 and distributed.rank() == 0
    assert distributed.shard([1, 2, 3]) == distributed.all_gather([1, 2, 3], 3) == [1, 2, 3]
    assert distributed.all_gather_object(tensor)[0] is tensor
    distributed.sum_gradients([tensor])
    distributed.broadcast([tensor])
    assert tensor.grad is None
