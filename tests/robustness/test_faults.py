"""A full disk or a kill at some of the writes of a training; at all of them: make test-faults."""

from tests.robustness.faults import Sweep

POINTS = {
    5: "os.rename /runs/RUN/pairs.jsonl",
    32: "half of the tensors /runs/RUN/checkpoint/.state.safetensors",
    50: "half of a text /runs/RUN/.adapter/pasto.json",
    93: "os.rename /runs/RUN/adapter",
}
"""What happens there, without the names of this moment: between the two renames of the last one
there is no adapter."""


def test_a_fault_costs_the_step_in_progress_at_most(tmp_path):
    runs = Sweep(tmp_path / "sweep", list(POINTS))
    found = list(runs.points())
    assert [point.number for point in found] == list(POINTS)
    for point in found:
        end = POINTS[point.number].rpartition("/")[2].removeprefix(".")
        assert end in point.what, point.what
    nothing, *begun = ((runs.after_kill(p), runs.after_full_disk(p)) for p in found)
    assert nothing == ("nothing was begun", "nothing was begun")
    assert set(begun) == {("resumed, the same bytes",) * 2}
