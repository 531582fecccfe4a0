"""From pairs to a trained adapter."""
