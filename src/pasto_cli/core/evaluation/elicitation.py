"""Before training: do the two personas move the clean base model at all?

Two measurements: T_cho - T_rej on held-out pairs (`certificate`), and y = log P(Yes) - log P(No) on
a few dilemmas under the positive, the neutral and the negative persona. If prompting with a persona
changes nothing, there is no direction to learn, and every later number is noise.
"""

from collections.abc import Sequence

from pasto_cli.base.statistics import cluster_bootstrap
from pasto_cli.core.evaluation.benchmarks import Benchmark
from pasto_cli.core.evaluation.certificate import measure_persona_llr
from pasto_cli.core.evaluation.questions import ask, score_answers
from pasto_cli.core.models.chat import TokenPair
from pasto_cli.core.models.loaded import LoadedModel
from pasto_cli.core.records.training import Elicitation
from pasto_cli.core.steering.steerer import NoOpSteerer


def elicit(
    lm: LoadedModel,
    pairs: Sequence[TokenPair],
    personas: tuple[str, str],
    benchmark: Benchmark,
    budget: int,
    count: int,
) -> Elicitation:
    """Measure the personas on the clean base model.

    Args:
        lm: The model.
        pairs: A sample of pairs.
        personas: One filled template of each persona: positive, negative.
        benchmark: A few of its items are asked.
        budget: Nodes of one token tree.
        count: Number of items.
    """
    llr = measure_persona_llr(lm, NoOpSteerer(), pairs, [], budget)
    difference = llr.chosen - llr.rejected
    span = cluster_bootstrap(lambda i: float(difference[i].mean()), llr.clusters)
    items = [item for item in benchmark.items if item.kind == "target"][:count]
    prefixes = {"positive": personas[0] + "\n\n", "neutral": "", "negative": personas[1] + "\n\n"}
    questions = [
        ask(lm.chat, prefix + item.prompt, benchmark.prefill)
        for prefix in prefixes.values()
        for item in items
    ]
    log_p = score_answers(lm, NoOpSteerer(), questions, [0.0], budget).log_p[0]  # (3 items, 2)
    y = (log_p[:, 0] - log_p[:, 1]).reshape(3, len(items))  # one row per persona
    means = dict(zip(prefixes, y.mean(1).tolist(), strict=True))
    return Elicitation(span, means, (y.amax(0) - y.amin(0)).mean().item(), len(items))
