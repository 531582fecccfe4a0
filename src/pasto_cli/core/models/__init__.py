"""Base models: loading, prompts, forward passes."""
