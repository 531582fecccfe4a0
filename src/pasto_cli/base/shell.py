"""Commands that a user is told to type next, as a shell takes them."""

import shlex


def pasto(*words: object) -> str:
    """`pasto` and its words, quoted where a path has spaces."""
    return shlex.join(["pasto", *map(str, words)])
