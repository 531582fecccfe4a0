"""A dial in lm-evaluation-harness: `make test-harness` installs it."""

import importlib.metadata
import json
import math
import subprocess
import sys

import pytest
import torch

from pasto_cli.workflows import dials, progress
from tests.support.harness_tasks import DOCUMENTS, documents, write_tasks
from tests.support.terminal import strict

lm_eval = pytest.importorskip("lm_eval", reason="lm_eval is not installed: make test-harness")


@pytest.fixture()
def tasks(project, monkeypatch):
    """A folder of task files beside a finished run, and a cache of data sets of its own."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(project.root / "datasets"))
    return write_tasks(project.root / "tasks")


@pytest.fixture()
def dial(project):
    """A dial that is turned far enough to show."""
    return dials.open_dial(str(project.run), progress.Silent(), packing=False)


def model(dial, coeff, **how):
    from pasto_cli.workflows.harnesses.dial_lm import PastoLM

    return PastoLM(dial=dial, coeff=coeff, batch_size=4, **how)


def run(lm, tasks, *names):
    """Metrics, and what the model answered to each request, of each task."""
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    found = lm_eval.simple_evaluate(lm, tasks=[*names], task_manager=manager, bootstrap_iters=10)
    answers = {name: [s["resps"] for s in found["samples"][name]] for name in names}
    return found["results"], answers


def log_probability(dial, coeff, context, continuation):
    """Log P(continuation | context), one forward of one row; the slow reference."""
    tokenizer = dial.lm.tokenizer
    head = tokenizer(context, add_special_tokens=False)["input_ids"]
    tail = tokenizer(continuation, add_special_tokens=False)["input_ids"]
    with torch.no_grad(), dial.at(coeff):
        logits = dial.lm.model(input_ids=torch.tensor([head + tail])).logits[0]
    logs = logits.double().log_softmax(-1)  # (t, v)
    return sum(float(logs[len(head) - 1 + i, token]) for i, token in enumerate(tail))


ALL = ("sums", "sums_text", "sums_rolling")


def test_zero_is_the_harness_own_model_on_the_base(dial, tasks):
    from lm_eval.models.huggingface import HFLM

    plain = HFLM(pretrained=dial.lm.model, tokenizer=dial.lm.tokenizer, batch_size=4)
    expected, base = run(plain, tasks, *ALL)
    found, answers = run(model(dial, 0.0), tasks, *ALL)
    assert answers == base
    assert found == expected
    _, turned = run(model(dial, 3.0), tasks, *ALL)
    for name in ALL:
        assert turned[name] != base[name], name


def test_each_task_may_have_a_coefficient_of_its_own(dial, tasks):
    found, answers = run(model(dial, "3;sums_text:-2;sums_rolling:0"), tasks, *ALL)
    for name, coefficient in (("sums", 3.0), ("sums_text", -2.0), ("sums_rolling", 0.0)):
        expected, alone = run(model(dial, coefficient), tasks, name)
        assert answers[name] == alone[name] and found[name] == expected[name], name


@pytest.mark.parametrize("coeff", [-2.0, 0.5])
def test_loglikelihoods_are_those_of_one_row_at_a_time(dial, tasks, coeff):
    _, answers = run(model(dial, coeff), tasks, "sums")
    for document, given in zip(documents(), answers["sums"], strict=True):
        context = f"{document['question']} Answer:"
        expected = [
            log_probability(dial, coeff, context, f" {choice}") for choice in document["choices"]
        ]
        assert [float(resp[0][0]) for resp in given] == pytest.approx(expected, abs=2e-4)


def test_texts_are_those_of_generate_inside_the_dial(dial, tasks):
    _, answers = run(model(dial, 2.0), tasks, "sums_text")
    for document, given in zip(documents(), answers["sums_text"], strict=True):
        ids = dial.lm.tokenizer(f"{document['question']} Answer:", return_tensors="pt")["input_ids"]
        with torch.no_grad(), dial.at(2.0):
            out = dial.lm.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=4,
                do_sample=False,
            )
        text = dial.lm.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        assert given == [[text.split("\n")[0]]]


def test_the_base_is_as_it_was_outside(dial, tasks):
    ids = torch.tensor([dial.lm.chat.prompt("Hello")])
    with torch.no_grad():
        before = dial.lm.model(input_ids=ids).logits
        lm = model(dial, 2.0)
        assert torch.equal(dial.lm.model(input_ids=ids).logits, before)
        run(lm, tasks, "sums")
        assert torch.equal(dial.lm.model(input_ids=ids).logits, before)


def test_the_harness_finds_the_model_by_its_entry_point():
    from lm_eval.models.huggingface import HFLM

    (point,) = importlib.metadata.entry_points(group="lm_eval.models", name="pasto")
    assert issubclass(point.load(), HFLM)


def test_model_args_open_a_dial(project):
    from pasto_cli.workflows.harnesses.dial_lm import PastoLM

    lm = PastoLM.create_from_arg_obj(
        {"adapter": str(project.run), "coeff": "-0.5", "raw": True, "device": "cpu"},
        {"batch_size": 2, "device": "cuda:0", "max_batch_size": None},
    )
    assert lm.coefficient == -0.5 and lm.batch_size == 2 and lm.dial.ends == (1.0, 1.0)
    facts = lm.get_model_info()
    assert facts["coefficient"] == -0.5 and facts["base"] == "random:llama"


@pytest.mark.parametrize("coeff", ["half", math.nan, None])
def test_what_is_no_coefficient_is_refused(dial, coeff):
    from pasto_cli.base.errors import PastoError

    with pytest.raises(PastoError, match="not a number|finite"):
        model(dial, coeff)


def test_the_command_of_the_harness(project, tasks):
    command = [
        *(sys.executable, "-m", "pasto_cli.harness", "--model", "pasto"),
        *("--model_args", "adapter=runs/latest,coeff=-1,device=cpu", "--tasks", "sums"),
        *("--include_path", "tasks", "--output_path", "out"),
    ]
    done = subprocess.run(command, cwd=project.root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    (path,) = (project.root / "out").rglob("results_*.json")
    found = json.loads(path.read_text())
    assert found["n-samples"]["sums"]["effective"] == DOCUMENTS
    assert found["config"]["coefficient"] == -1


def test_a_table_of_capability_against_the_coefficient(pasto, project, dial, tasks):
    asked = ("eval", "--harness", "lm_eval", "--tasks", "sums,sums_text", "--data", "tasks")
    said = pasto(*asked, "--coeffs=1,0,-2", "--batch-size", "4")
    assert said.code == 0, said.err
    path = project.run / "eval" / "lm_eval-sums-sums_text.json"
    found = strict(path.read_text())
    assert found["coefficients"] == [-2, 0, 1] and found["provenance"]["lm_eval"]
    scores = {(s["metric"], s["coefficient"]): s for s in found["scores"] if s["task"] == "sums"}
    for a in (-2.0, 0.0, 1.0):
        expected = run(model(dial, a), tasks, "sums")[0]["sums"]
        for metric in ("acc", "acc_norm"):
            score = scores[metric, a]
            assert score["value"] == expected[f"{metric},none"]
            assert score["stderr"] == expected[f"{metric}_stderr,none"]
            assert score["n"] == DOCUMENTS and score["higher_is_better"] is True
            assert f"{score['value']:.3f} ± {score['stderr']:.3f}" in said.out
    assert "exact_match" in said.out and str(path) in said.out
    part = pasto(*asked, "--limit", "3", "--json")
    assert strict(part.out) == strict(path.read_text())
    assert strict(part.out)["limit"] == 3 and {s["n"] for s in strict(part.out)["scores"]} == {3}


def test_a_group_has_the_documents_of_its_tasks(pasto, project, tasks):
    (tasks / "both.yaml").write_text(
        "group: both\ntask: [sums, sums_text]\n"
        "aggregate_metric_list: [{metric: acc, weight_by_size: true}]\n"
    )
    said = pasto(
        *("eval", "--harness", "lm_eval", "--tasks", "both", "--data", "tasks"),
        *("--coeffs=0", "--json"),
    )
    scores = {(s["task"], s["metric"]): s for s in strict(said.out)["scores"]}
    assert scores["both", "acc"]["n"] == 2 * DOCUMENTS
    assert scores["sums", "acc"]["n"] == DOCUMENTS


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (("--tasks", "no_such_task"), "has no task 'no_such_task'"),
        (("--tasks", "broken", "--data", "tasks"), "cannot load broken"),
        (("--tasks", "sums", "--data", "nowhere"), "nowhere is no folder"),
        (("--tasks", "sums", "--data", "tasks", "--coeffs=nan"), "is not a coefficient"),
    ],
)
def test_what_the_harness_cannot_run_is_a_clear_line(pasto, tasks, options, error):
    (tasks / "broken.yaml").write_text((tasks / "sums.yaml").read_text().replace("sums", "broken"))
    said = pasto("eval", "--harness", "lm_eval", *options)
    assert said.code == 1 and error in said.error and said.next_step
