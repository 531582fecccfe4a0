"""Tests, laid out as the source: `unit/` has its rooms, `cli/` its commands, `golden/` the original code."""
