"""What a run depends on: said by file and server alike, compared at every connection, refused in other units."""

import copy
import time

import numpy as np
import pytest
import robot_cases

from alohas2r.deployment.terms import load_policy, terms
from alohas2r.errors import ArtifactError, BackendUnavailable
from alohas2r.policies.remote import server as policy_server
from alohas2r.policies.remote.served import ServedPolicy
from alohas2r.policies.remote.units import check_units


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return robot_cases.student(tmp_path_factory)


class Elsewhere(ServedPolicy):
    """A connection whose server says something else about itself."""

    def __init__(self, metadata, interface) -> None:
        self.url, self.metadata, self.interface = "ws://there", metadata, interface


@pytest.fixture(scope="module")
def policy(student):
    return load_policy(student)


def test_a_server_says_all_that_the_file_says(policy) -> None:
    served = Elsewhere(policy_server.metadata(policy), policy.interface)
    assert terms(served)[1:] == terms(policy)[1:]
    assert terms(served).switch.on_height == 0.16  # not the default


@pytest.mark.parametrize("key", ["policy", "interface", "switch", "cameras", "actions"])
def test_a_server_that_leaves_something_out_is_refused(policy, key: str) -> None:
    metadata = policy_server.metadata(policy)
    del metadata[key]
    with pytest.raises(ArtifactError, match=f"does not say .*{key}"):
        terms(Elsewhere(metadata, policy.interface))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"scale": 1.15}, "action scale 1.15"),
        ({"scale": None}, "action scale None"),
        ({"control_period_s": 0.02}, r"every 0\.02 s"),
        ({"low": [-180.0] * 14}, "in other units"),
        ({"high": [3.14] * 14}, "another robot"),
        ({"joints": "reversed"}, "out of order"),
    ],
)
def test_actions_for_another_robot_or_in_other_units_are_refused(policy, change, words) -> None:
    other = copy.copy(policy)
    if change.get("joints") == "reversed":
        change = {"joints": list(reversed(policy.action["joints"]))}
    other.action = {**policy.action, **change}
    for one in (other, Elsewhere(policy_server.metadata(other), policy.interface)):
        with pytest.raises(ArtifactError, match=words):
            terms(one)


@pytest.mark.parametrize(("name", "unit"), [("left_depth", "mm"), ("proprioception", "deg")])
def test_observations_in_other_units_are_refused(policy, name: str, unit: str) -> None:
    import dataclasses

    other = copy.copy(policy)
    inputs = [
        dataclasses.replace(one, unit=unit) if one.name == name else one
        for one in policy.interface.inputs
    ]
    other.interface = dataclasses.replace(policy.interface, inputs=tuple(inputs))
    with pytest.raises(ArtifactError, match=f"{name} in {unit}; a robot gives it in"):
        terms(other)


def test_a_server_that_comes_back_as_another_policy_is_refused_for_good(
    student, policy, monkeypatch
) -> None:
    example = {
        name: np.zeros(one.shape, one.dtype)
        for name, one in ((one.name, one) for one in policy.interface.inputs)
    }
    with robot_cases.serving(student) as port:
        served = ServedPolicy(f"127.0.0.1:{port}", timeout_s=5)
        served.act(example)
    with pytest.raises(BackendUnavailable, match="is gone"):
        served.act(example)
    plain = policy_server.metadata
    monkeypatch.setattr(policy_server, "metadata", lambda one: {**plain(one), "policy": "another"})
    with served, robot_cases.serving(student, port):
        patience_s = time.monotonic() + 60
        while not served._refusal and time.monotonic() < patience_s:
            time.sleep(0.05)
        for _ in range(2):
            with pytest.raises(ArtifactError, match="another policy: policy changed"):
                served.act(example)


def observation() -> dict[str, object]:
    rng = np.random.default_rng(0)
    return {
        "proprioception": rng.normal(0, 0.02, 32).astype(np.float32),
        "left_depth": rng.uniform(0, 0.4, (32, 32)).astype(np.float32),
        "left_rgb": rng.integers(0, 255, (32, 32, 3)).astype(np.uint8),
        "switched": np.bool_(False),
    }


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"left_depth": np.full((32, 32), 200, np.float32)}, "not in millimetres"),
        ({"left_depth": np.full((32, 32), -0.1, np.float32)}, "goes down to -0.1"),
        ({"proprioception": np.full(32, 57.0, np.float32)}, "not in degrees"),
        (
            {"proprioception": np.tile(np.r_[np.zeros(6), 20, 20], 4).astype(np.float32)},
            "metres of travel",
        ),
    ],
)
def test_the_server_refuses_numbers_that_no_robot_measures(change, words: str) -> None:
    check_units(observation())
    with pytest.raises(ArtifactError, match=words):
        check_units(observation() | change)


def test_what_is_no_number_or_of_another_shape_is_left_to_the_policy() -> None:
    check_units({"left_depth": "far", "proprioception": np.zeros(3), "prompt": None})
    check_units({"left_depth": np.zeros((0,), np.float32)})
