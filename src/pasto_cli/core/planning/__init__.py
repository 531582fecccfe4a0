"""Planning: what a training will need, before anything large is downloaded."""
