"""`pasto generate`."""

from tests.support.runs import base_text
from tests.support.terminal import strict

PROMPT = "Should I tell my boss that I overslept?"


def texts(said):
    assert said.code == 0, said.err
    return [record["text"] for record in strict(said.out)]


def test_generate_streams_one_coefficient(pasto, project, monkeypatch):
    from pasto_cli.cli import generate

    pieces, real = [], generate._write
    monkeypatch.setattr(generate, "_write", lambda piece: (pieces.append(piece), real(piece)))
    said = pasto("generate", PROMPT, "--coeff", "-1", "--max-new-tokens", 12)
    assert said.code == 0, said.err
    assert pieces and said.out == "".join(pieces) and said.out.endswith("\n")
    assert [said.out.strip()] == texts(
        pasto("generate", PROMPT, "-c", "-1", "--max-new-tokens", 12, "--json")
    )
    assert project.run.name in said.err  # which adapter "the latest" is


def test_generate_side_by_side(pasto, project):
    prompt = "Describe [your] hometown."  # brackets are rich's markup: they must come through
    options = ("--max-new-tokens", 6, "-a", project.run / "adapter")
    coefficients = ("--coeff", "-1", "--coeff", "0", "--coeff", "1")
    said = pasto("generate", *coefficients, prompt, *options)
    assert said.code == 0, said.err
    assert said.out.splitlines()[0] == prompt
    assert all(heading in said.out for heading in (" -1 ", " 0 (base) ", " +1 "))
    found = texts(pasto("generate", *coefficients, prompt, *options, "--json"))
    assert all(text.split()[0] in said.out for text in found if text.split())
    assert len(found) == 3
    # The dial does something: a short training of random weights moves their greedy text only where
    # it is turned far.
    far = texts(
        pasto(
            "generate",
            "--coeff",
            "-40",
            "--coeff",
            "0",
            "--coeff",
            "40",
            prompt,
            *options,
            "--json",
        )
    )
    assert far[1] == found[1] and len(set(far)) > 1
    assert found == [
        texts(pasto("generate", "-c", a, prompt, *options, "--json"))[0] for a in (-1, 0, 1)
    ]


def test_generate_from_standard_input(pasto, project):
    said = pasto(
        "generate",
        "--stdin",
        "-c",
        "-1",
        "-c",
        "1",
        "--max-new-tokens",
        5,
        "--json",
        stdin="One thing.\n\n Another. \n",
    )
    records = strict(said.out)
    assert [(r["prompt"], r["coeff"]) for r in records] == [
        ("One thing.", -1),
        ("One thing.", 1),
        ("Another.", -1),
        ("Another.", 1),
    ]
    streamed = pasto(
        "generate", "--stdin", "-c", "1", "--max-new-tokens", 5, stdin="One thing.\nAnother.\n"
    )
    assert [r["text"] for r in records[1::2]] == [
        line.strip() for line in streamed.out.splitlines()
    ]


def test_generate_at_0_is_the_base_model(pasto, project, tiny):
    found = texts(pasto("generate", PROMPT, "-c", "1", "-c", "0", "--max-new-tokens", 24, "--json"))
    assert found[1] == base_text(tiny(), PROMPT, 24) != found[0]


def test_generate_samples_by_seed(pasto, project):
    def sample(seed, *coefficients):
        options = [x for a in coefficients for x in ("-c", a)]
        said = pasto(
            "generate",
            PROMPT,
            *options,
            "--temperature",
            1,
            "--seed",
            seed,
            "--max-new-tokens",
            16,
            "--json",
        )
        return texts(said)

    first = sample(7, 1)
    assert first == sample(7, 1) != sample(8, 1)
    assert sample(7, -1, 1)[1] == first[0]  # a sample does not depend on its neighbours
    assert first != texts(pasto("generate", PROMPT, "-c", "1", "--max-new-tokens", 16, "--json"))
