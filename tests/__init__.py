"""Tests, laid out as the source: `unit/` has the package's rooms and `cli/` its commands.

`golden/` holds the outputs of the original code against ours, `reference/` the method written the
textbook way, `support/` what several tests share.
"""
