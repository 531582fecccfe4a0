"""Dials in other evaluation harnesses: lm-evaluation-harness and inspect_ai."""
