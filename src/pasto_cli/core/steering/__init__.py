"""What turns a coefficient into a changed model."""
