"""The version of pasto, written here alone: package, wheel and `pasto --version` read it."""

__version__ = "0.1.0"
