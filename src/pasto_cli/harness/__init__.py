"""The command of lm-evaluation-harness with `--model pasto`."""
