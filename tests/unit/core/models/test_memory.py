"""Memory that runs out: the work goes on in halves, with the same numbers, and says so once a
size."""

import pytest
import torch

from pasto_cli.core.evaluation import certificate
from pasto_cli.core.evaluation.questions import ask, score_answers
from pasto_cli.core.models import forward
from pasto_cli.core.models.memory import Pieces, ShortageWarning, is_shortage
from pasto_cli.core.steering.steerer import AdapterSteerer


def test_groups_are_halved_until_they_fit():
    done, tried = [], []

    def run(group):
        tried.append(len(group))
        if len(group) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        done.extend(group)

    pieces = Pieces(run)
    with pytest.warns(ShortageWarning) as told:
        pieces(list(range(16)))
    assert done == list(range(16)) and tried == [16, 8, 4, 2, 2, 2, 2, 2, 2, 2, 2]
    assert len(told) == 3
    tried.clear()
    pieces([7, 8, 9, 10])  # the size that failed is not tried again
    assert tried == [2, 2]


def test_one_row_that_does_not_fit_is_an_error_and_others_are_not_shortages():
    def never(group):
        raise MemoryError

    with pytest.raises(MemoryError):
        Pieces(never)([1])

    def broken(group):
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape"):
        Pieces(broken)([1, 2])
    assert is_shortage(
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
    )


@pytest.fixture()
def scarce(monkeypatch):
    """A model that fits few nodes at once."""

    real = forward.run_packed

    def make(limit):
        def run(lm, packed, *args, **more):
            if packed.num_nodes > limit:
                raise torch.OutOfMemoryError("out of memory")
            return real(lm, packed, *args, **more)

        monkeypatch.setattr(forward, "run_packed", run)

    return make


@pytest.mark.filterwarnings("ignore::pasto_cli.core.models.memory.ShortageWarning")
def test_answers_and_certificates_are_the_same_in_smaller_pieces(
    tiny, tiny_pairs, make_adapter, scarce
):
    lm = tiny()
    steerer = AdapterSteerer(make_adapter(lm), lm)
    questions = [ask(lm.chat, f"Is {n} even?", "I say", ("Yes", "No")) for n in range(8)]
    whole = score_answers(lm, steerer, questions, [-1.0, 0.0, 1.0], 4096)
    llr = certificate.measure_persona_llr(lm, steerer, tiny_pairs[:6], [1.0, -1.0], 4096)
    scarce(200)
    torch.testing.assert_close(
        score_answers(lm, steerer, questions, [-1.0, 0.0, 1.0], 4096).log_p,
        whole.log_p,
        rtol=1e-5,
        atol=1e-5,
    )
    scarce(400)
    again = certificate.measure_persona_llr(lm, steerer, tiny_pairs[:6], [1.0, -1.0], 4096)
    for a in (1.0, -1.0):
        assert again.steered[a] == pytest.approx(llr.steered[a], abs=1e-5)
