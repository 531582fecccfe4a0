"""The method: models, adapter, losses, training, artifact."""
