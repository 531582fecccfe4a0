"""Where a request wants the dials."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pasto_cli.base.errors import PastoError
from pasto_cli.core.serving.engine import Refusal
from pasto_cli.core.serving.positions import Positions, name_of

SERVED = Positions({"honest": None, "cheerful": 0.5, "nice-v1.2": None})


@pytest.mark.parametrize(
    ("model", "dial", "expected"),
    [
        ("base", None, {}),
        (None, None, {"cheerful": 0.5}),
        ("default", {"cheerful": 0, "honest": 1}, {"honest": 1.0}),
        ("honest", None, {"honest": 1.0}),
        ("cheerful", None, {"cheerful": 0.5}),
        ("honest@-0.5", None, {"honest": -0.5}),
        ("honest@+0.5+cheerful@-0.3", None, {"honest": 0.5, "cheerful": -0.3}),
        ("honest+cheerful", None, {"honest": 1.0, "cheerful": 0.5}),
        ("nice-v1.2@2", {"honest": "-0.5"}, {"nice-v1.2": 2.0, "honest": -0.5}),
        ("honest@1", {"honest": 0.25}, {"honest": 0.25}),
    ],
)
def test_read(model, dial, expected):
    assert SERVED.read(model, dial) == expected


@pytest.mark.parametrize(
    ("model", "dial", "param", "code"),
    [
        ("gpt-4o", None, "model", "unknown_dial"),
        ("honest@", None, "model", "bad_coefficient"),
        ("honest@nan", None, "model", "bad_coefficient"),
        ("honest@1e999", None, "model", "bad_coefficient"),
        ("honest@1e300", None, "model", "bad_coefficient"),
        ("honest@0.5@1", None, "model", "bad_coefficient"),
        ("honest+", None, "model", "unknown_dial"),
        ("honest+honest@1", None, "model", None),
        ("base+honest", None, "model", "unknown_dial"),
        ("base", {"kind": 1}, "dial", "unknown_dial"),
        ("base", {"honest": None}, "dial", "bad_coefficient"),
        ("base", {"honest": True}, "dial", "bad_coefficient"),
        ("base", {"honest": float("inf")}, "dial", "bad_coefficient"),
        ("base", {"honest": 10**400}, "dial", "bad_coefficient"),
        ("base", [1], "dial", None),
    ],
)
def test_refused_with_the_next_step(model, dial, param, code):
    with pytest.raises(Refusal) as found:
        SERVED.read(model, dial)
    assert (found.value.status, found.value.param, found.value.code) == (400, param, code)
    assert found.value.hint


@given(
    st.dictionaries(
        st.sampled_from(["honest", "cheerful", "nice-v1.2"]),
        st.integers(-300, 300).filter(bool).map(lambda n: n / 100),
    )
)
def test_a_position_s_name_means_it(position):
    assert SERVED.read(name_of(position)) == position


@pytest.mark.parametrize("name", ["base", "default", "a@b", "a+b", "", "my dial", "-x"])
def test_names_that_requests_could_not_tell_apart(name):
    with pytest.raises(PastoError, match="cannot be called"):
        Positions({name: None})
