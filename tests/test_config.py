from __future__ import annotations

import dataclasses
import json
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alohas2r import config
from alohas2r.errors import Alohas2rError, ConfigError


@dataclasses.dataclass(frozen=True)
class Network:
    layers: tuple[int, ...] = (32, 32)
    activation: Literal["swish", "relu"] = "swish"
    clip: float | None = None

    def __post_init__(self) -> None:
        config.check(
            all(width > 0 for width in self.layers),
            f"layers = {self.layers} must all be positive.",
        )


@dataclasses.dataclass(frozen=True)
class Part:
    name: str
    size: int


@dataclasses.dataclass(frozen=True)
class Training:
    envs: int = 2048
    batch: int = 512
    discount: float = 0.97
    normalize: bool = True
    note: str = ""
    box: tuple[float, float] = (0.0, 1.0)
    pairs: tuple[tuple[int, str], ...] = ()
    limit: int | None = None
    parts: tuple[Part, ...] = ()
    policy: Network = Network()

    def __post_init__(self) -> None:
        config.check(0 < self.discount <= 1, f"discount = {self.discount:g} must lie in (0, 1].")
        config.check(
            self.envs % self.batch == 0,
            f"batch = {self.batch} must divide envs = {self.envs}.",
        )


finite = st.floats(allow_nan=False, allow_infinity=False)
words = st.text("abcxyz0189_-. ", max_size=8).map(str.strip)
networks = st.builds(
    Network,
    layers=st.lists(st.integers(1, 4096), max_size=4).map(tuple),
    activation=st.sampled_from(["swish", "relu"]),
    clip=st.none() | finite,
)
trainings = st.builds(
    lambda batch, times, **rest: Training(batch=batch, envs=batch * times, **rest),
    batch=st.integers(1, 10_000),
    times=st.integers(1, 100),
    discount=st.floats(0, 1, exclude_min=True),
    normalize=st.booleans(),
    note=words,
    box=st.tuples(finite, finite),
    pairs=st.lists(st.tuples(st.integers(), words.filter(bool)), max_size=3).map(tuple),
    limit=st.none() | st.integers(),
    parts=st.lists(st.builds(Part, words, st.integers()), max_size=3).map(tuple),
    policy=networks,
)


@given(trainings)
def test_dict_round_trip_through_json(training: Training) -> None:
    text = json.dumps(config.to_dict(training))
    assert config.from_dict(Training, json.loads(text)) == training


@given(trainings, trainings)
def test_override_with_every_key_turns_one_into_the_other(a: Training, b: Training) -> None:
    def text(value: object) -> str:
        if isinstance(value, list):
            return "(" + ",".join(text(item) for item in value) + ",)"
        return str(value)

    def pairs(value: object) -> str:
        return text(value) if value else "()"

    settings = [
        f"{key}={pairs(value) if isinstance(value, list) else value}"
        for key, value in config.flatten(b).items()
        if key != "parts"  # tables in a list cannot be written as text
    ]
    assert config.override(a, settings) == dataclasses.replace(b, parts=a.parts)


@given(trainings, trainings)
def test_digest_and_difference_agree_with_equality(a: Training, b: Training) -> None:
    assert (config.digest(a) == config.digest(b)) == (config.to_dict(a) == config.to_dict(b))
    assert (config.difference(a, b) == []) == (config.flatten(a) == config.flatten(b))
    assert config.difference(a, a) == []


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("envs=1_024", Training(envs=1024)),
        ("envs=1024e1", Training(envs=10240)),
        ("normalize=off", Training(normalize=False)),
        ("policy.layers=64", Training(policy=Network(layers=(64,)))),
        ("policy.layers=[64, 8]", Training(policy=Network(layers=(64, 8)))),
        ("policy.layers=()", Training(policy=Network(layers=()))),
        ("policy.clip=0.2", Training(policy=Network(clip=0.2))),
        ("policy.clip=None", Training()),
        ("box=-1,2.5", Training(box=(-1.0, 2.5))),
        ("pairs=(1,a),(2,b)", Training(pairs=((1, "a"), (2, "b")))),
        ("pairs=((1,a),)", Training(pairs=((1, "a"),))),
        ("note=a=b", Training(note="a=b")),
    ],
)
def test_values_are_read_by_the_type_of_the_field(setting: str, expected: Training) -> None:
    assert config.override(Training(), [setting]) == expected


@pytest.mark.parametrize(
    ("setting", "parts"),
    [
        ("discout=0.9", ["'discout'", "Did you mean 'discount'?"]),
        ("policy.layer=3", ["'policy.layer'", "Did you mean 'policy.layers'?"]),
        ("layers=3", ["'layers'", "Did you mean 'policy.layers'?"]),
        ("zzz=3", ["'zzz'", "Valid choices", "discount"]),
        ("policy=3", ["'policy' is a group", "policy.activation"]),
        ("envs.x=3", ["'envs.x'", "'envs' has no keys"]),
        ("envs=many", ["envs=many", "an integer"]),
        ("envs=2.5", ["envs=2.5", "an integer"]),
        ("envs=inf", ["envs=inf", "an integer"]),
        ("discount=nan", ["discount=nan", "a finite number"]),
        ("discount=1.5", ["discount=1.5", "must lie in (0, 1]"]),
        ("normalize=maybe", ["normalize=maybe", "true or false"]),
        ("box=1", ["box=1", "a list of 2"]),
        ("box=((1,2)", ["box", "a list of 2"]),
        ("policy.activation=tanh", ["policy.activation=tanh", "one of swish, relu"]),
        ("policy.layers=32,0", ["policy.layers=(32,0)", "must all be positive"]),
        ("policy.clip=x", ["policy.clip=x", "a finite number or none"]),
        ("parts=a", ["parts=a", "a table of name, size"]),
        ("limit=1.5", ["limit=1.5", "an integer or none"]),
        ("discount", ["'discount'", "key=value"]),
        ("=3", ["'=3'", "key=value"]),
    ],
)
def test_bad_settings_are_named_with_what_is_valid(setting: str, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        config.override(Training(), [setting])
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_settings_that_constrain_each_other_are_applied_together() -> None:
    assert config.override(Training(), ["envs=100", "batch=50"]) == Training(envs=100, batch=50)
    with pytest.raises(ConfigError, match=r"envs=100: batch = 512 must divide envs = 100"):
        config.override(Training(), ["envs=100"])


def test_last_of_equal_settings_holds_and_the_original_stays() -> None:
    original = Training()
    changed = config.override(original, ["discount=0.5", "discount=0.25"])
    assert changed.discount == 0.25
    assert original == Training()
    assert config.override(original, []) == original


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"discout": 0.9}, "Did you mean 'discount'?"),
        ({"policy": {"layrs": []}}, "Did you mean 'policy.layers'?"),
        ({"policy": 3}, "'policy' must be a table"),
        ({"envs": True}, "'envs' = True must be an integer"),
        ({"envs": "12"}, "'envs' = '12' must be an integer"),
        ({"normalize": 1}, "true or false"),
        ({"discount": float("inf")}, "a finite number"),
        ({"discount": 2}, "must lie in (0, 1]"),
        ({"box": [1.0, 2.0, 3.0]}, "a list of 2"),
        ({"box": 1.0}, "a list of 2"),
        ({"parts": [{"name": "a", "size": 1.5}]}, "'size' = 1.5 must be an integer"),
        ({"parts": [{"name": "a"}]}, "lacks the key 'size'"),
        ({"parts": [3]}, "must be a table"),
    ],
)
def test_from_dict_is_strict(change: dict[str, object], part: str) -> None:
    data = config.to_dict(Training()) | change
    with pytest.raises(ConfigError) as caught:
        config.from_dict(Training, data, partial=True)
    assert part in str(caught.value)


def test_missing_keys_are_an_error_unless_partial() -> None:
    data = config.to_dict(Training(discount=0.5))
    del data["envs"], data["policy"]["clip"]
    with pytest.raises(ConfigError, match="lacks the key 'envs'"):
        config.from_dict(Training, data)
    assert config.from_dict(Training, data, partial=True) == Training(discount=0.5)


def test_difference_names_keys_and_values() -> None:
    other = Training(policy=Network(layers=(8,)))
    assert config.difference(Training(), other) == ["policy.layers: [32, 32] -> [8]"]


def test_check_raises_an_error_of_the_package() -> None:
    config.check(True, "never")
    with pytest.raises(Alohas2rError, match="speed"):
        config.check(False, "speed = -1 must be positive.")


def test_digest_does_not_depend_on_how_a_number_was_written() -> None:
    written = Training(discount=1, box=(-0.0, 1))
    read = config.from_dict(Training, json.loads(json.dumps(config.to_dict(written))))
    assert config.digest(written) == config.digest(read)
    assert config.digest(written) != config.digest(Training())


@dataclasses.dataclass(frozen=True)
class Before:
    low: float = 1.0


@dataclasses.dataclass(frozen=True)
class After:
    low: float = 1.0
    high: float = config.later(2.0)


@dataclasses.dataclass(frozen=True)
class HoldsBefore:
    inner: Before = Before()


@dataclasses.dataclass(frozen=True)
class HoldsAfter:
    inner: After = After()


def test_a_later_field_counts_only_where_it_differs() -> None:
    changed = After(high=3.0)
    assert config.digest(After()) == config.digest(Before())
    assert config.digest(HoldsAfter()) == config.digest(HoldsBefore())
    assert config.digest(changed) != config.digest(After())
    assert config.digest(HoldsAfter(changed)) != config.digest(HoldsAfter())
    assert config.to_dict(After()) == {"low": 1.0, "high": 2.0}


def test_values_of_a_wrong_type_cannot_be_written() -> None:
    with pytest.raises(ConfigError, match="'note' = 3 must be text"):
        config.to_dict(Training(note=3))  # pyright: ignore[reportArgumentType]
