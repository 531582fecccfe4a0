"""`pasto eval --harness`: what is refused, with or without a harness installed."""

import importlib.metadata
import importlib.util

import pytest

LM_EVAL = ("eval", "--harness", "lm_eval")


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (("eval", "--harness", "other", "--tasks", "x"), "--harness 'other' is not known"),
        (LM_EVAL, "needs tasks"),
        ((*LM_EVAL, "--tasks", "x", "-b", "sentiment"), "--benchmark does not go with --harness"),
        ((*LM_EVAL, "--tasks", "x", "--oracles"), "--oracles does not go with --harness"),
        ((*LM_EVAL, "--tasks", "x", "--equal-kl"), "--equal-kl does not go with --harness"),
        ((*LM_EVAL, "--tasks", "x", "a", "b"), "several adapters do not go with --harness"),
        (("eval", "--tasks", "x"), "--tasks does not go with the benchmarks of pasto"),
        (("eval", "--oracles", "--batch-size", "2"), "--batch-size does not go with"),
    ],
)
def test_options_that_contradict_each_other(pasto, args, error):
    said = pasto(*args)
    assert said.code == 1 and error in said.error and said.next_step


def test_a_harness_that_is_not_installed_is_named_with_the_command(pasto, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *args: None if name == "lm_eval" else find(name, *args),
    )
    said = pasto(*LM_EVAL, "--tasks", "arc_easy")
    assert said.code == 1 and said.error == "error: lm_eval is not installed"
    assert "pip install 'lm_eval" in said.next_step


def test_a_harness_that_is_too_old_is_named_with_the_command(pasto, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda *args: object())
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.4.9")
    said = pasto(*LM_EVAL, "--tasks", "arc_easy")
    assert said.code == 1 and said.error == "error: lm_eval 0.4.9 is too old"
    assert "pip install 'lm_eval" in said.next_step
