"""The shared package: all that knows the method."""
