"""Seeded damage: what cables, editors, other tools and strangers do to files."""

import copy
import json
import random
import struct
from typing import Any

NASTY = (
    b"\x00",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",  # half of a surrogate pair
    b"\r",
    b"\xe2\x80\xa8",
    b"[" * 3000,
    b"{" * 3000,
    b'{"a":' * 2000,
    b"- " * 2000,
    b"&a [*a]",
    b"*a",
    b"<<: *a",
    b"!!python/name:os",
    b"!!python/object/apply:os.system ['true']",
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"9" * 400,
    b"9" * 5000,
    b"-1",
    b"0",
    b"null",
    b"~",
    b"true",
    b"no",
    b"\t",
    b": ",
    b"# ",
    b"---\n",
    b"|\n",
    b"2001-02-31",
    b'"',
    b"'",
    b"{{",
    b"}}",
    b"{% for x in range(10**9) %}",
    b"{% raw %}",
    b"../../",
)
VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1,
    10**30,
    2**64,
    -(10**18),
    1e308,
    1e-320,
    float("nan"),
    float("inf"),
    "",
    " ",
    "x" * 5000,
    "../..",
    "/etc/passwd",
    "~nobody-here/x",
    "\x00",
    "\ud800",
    [],
    [[]],
    {},
    {"a": {}},
    [None] * 50,
    ["1"],
    {"1": 1},
    "-1",
    "none",
    "4bit",
    "random:llama",
    "./nowhere",
    "cuda:99",
    "a/b",
    ["a", "b", "c"],
    [0, 1],
    [-5],
    [10**9],
    "no",
    "{persona}",
    "{persona} {persona}",
    "{situation}",
)


def mangle_bytes(raw: bytes, rng: random.Random) -> bytes:
    """One to four cuts, copies, flips and insertions."""
    for _ in range(rng.randint(1, 4)):
        i, j = sorted((rng.randint(0, len(raw)), rng.randint(0, len(raw))))
        match rng.randrange(7):
            case 0:
                raw = raw[:i] + raw[j:]
            case 1:
                raw = raw[:j] + raw[i:]
            case 2 | 3:
                raw = raw[:i] + rng.choice(NASTY) + raw[i:]
            case 4:
                raw = raw[:i] + bytes([rng.randrange(256)]) + raw[i + 1 :]
            case 5:
                raw = raw[:i]  # half a download
            case _:
                raw = mangle_lines(raw, rng)
    return raw


def mangle_lines(raw: bytes, rng: random.Random) -> bytes:
    """A line twice, gone, elsewhere, indented; other ends of lines; another encoding."""
    lines = raw.split(b"\n")
    i, j = rng.randrange(len(lines)), rng.randrange(len(lines))
    match rng.randrange(7):
        case 0:
            lines.insert(j, lines[i])
        case 1:
            del lines[i]
        case 2:
            lines[i], lines[j] = lines[j], lines[i]
        case 3:
            lines[i] = rng.choice((b" ", b"\t", b"  ")) + lines[i]
        case 4:
            return rng.choice((b"\r\n", b"\r", b"\x0b", b"\xe2\x80\xa8")).join(lines)
        case 5:
            text = raw.decode("utf-8", "replace")
            return text.encode(rng.choice(("utf-16", "utf-8-sig", "utf-32", "utf-7")))
        case _:
            lines[i] = lines[i][: len(lines[i]) // 2]
    return b"\n".join(lines)


def mangle_json(data: Any, rng: random.Random) -> Any:
    """One to three places of a JSON value replaced, removed or added to."""
    data = json.loads(json.dumps(data))
    for _ in range(rng.randint(1, 3)):
        here = data
        while True:
            keys = list(here) if isinstance(here, dict) else list(range(len(here)))
            if not keys:
                break
            key = rng.choice(keys)
            if isinstance(here[key], dict | list) and rng.random() < 0.75:
                here = here[key]
                continue
            what = rng.random()
            if what < 0.7:
                here[key] = copy.deepcopy(rng.choice(VALUES))
            elif what < 0.85:
                del here[key]
            elif isinstance(here, dict):
                new = rng.choice(("", "x", "../..", "__class__", str(key) + " "))
                here[new] = copy.deepcopy(rng.choice(VALUES))
            break
    return data


def mangle_safetensors(raw: bytes, rng: random.Random) -> bytes:
    """The bytes of a safetensors file, or its header, damaged."""
    if rng.random() < 0.3:
        return mangle_bytes(raw, rng)
    (size,) = struct.unpack("<Q", raw[:8])
    header = raw[8 : 8 + size]
    if rng.random() < 0.7:
        text = json.dumps(mangle_json(json.loads(header), rng)).encode()
    else:
        text = mangle_bytes(header, rng)
    length = rng.choice((len(text), len(text), len(text), size, 2**60, 2**63 + 1, 2**31, 0))
    return struct.pack("<Q", length) + text + raw[8 + size :]


def mangle_gguf(raw: bytes, rng: random.Random, header: int) -> bytes:
    """A GGUF file with its first `header` bytes damaged: counts, lengths, kinds, names, values."""
    raw = bytearray(raw)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(header)
        match rng.randrange(5):
            case 0:
                raw[at] = rng.randrange(256)
            case 1:
                number = rng.choice((0, 1, 2**31, 2**40, 2**63, 2**64 - 1))
                raw[at : at + 8] = struct.pack("<Q", number)
            case 2:
                raw[at : at + 4] = struct.pack("<I", rng.choice((0, 1, 8, 9, 12, 99, 2**32 - 1)))
            case 3:
                del raw[at : at + rng.randint(1, 64)]
            case _:
                del raw[rng.randrange(len(raw)) :]
                header = max(1, min(header, len(raw)))
        if not raw:
            break
    return bytes(raw)


def dumps(data: Any) -> bytes:
    """JSON with whatever is in it, half characters too."""
    return json.dumps(data).encode("utf-8", "surrogatepass")
