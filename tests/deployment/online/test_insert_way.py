"""The way back from an insertion: out as it went in, near to where insertions begin, or down onto the table."""

from __future__ import annotations

import pathlib

import numpy as np
import online_cases
import pytest

from alohas2r.core.records import RecordReader
from alohas2r.deployment.config import DriveMode
from alohas2r.deployment.log import LogWriter
from alohas2r.deployment.loop import Deployment
from alohas2r.deployment.online import opened
from alohas2r.deployment.online.deciders import Alone
from alohas2r.deployment.online.explorer import LEASH_RAD, Phase
from alohas2r.deployment.online.insert_way import ELSEWHERE_M, InsertBack, arms_of
from alohas2r.deployment.online.inserter import Inserter
from alohas2r.deployment.online.opened import (
    open_world,
    shipped_base,
    slower_by,
    stage_config,
)
from alohas2r.deployment.online.stage import Stage
from alohas2r.deployment.online.truth import InsertTruth, Start, Truth
from alohas2r.deployment.rig import RigConfig, Simulation
from alohas2r.deployment.trials import Trials
from alohas2r.embodiment.control import next_target
from alohas2r.embodiment.joints import IS_GRIPPER, two_fingers
from alohas2r.embodiment.observation import proprioception as joint_values
from alohas2r.learning.online.examples import read_trials
from alohas2r.learning.online.experience import Chains, Closed
from alohas2r.policies.online.config import LOGS
from alohas2r.policies.online.tasks import Held
from alohas2r.policies.onnx.base import Base, insert_spec, read_base
from alohas2r.safety.reactions import Mode
from alohas2r.sim import scene
from alohas2r.sim.kinematics import tip_midpoints
from alohas2r.sim.objects import HALF_LENGTH

HELD, EMPTY, OPEN = 0.018, 0.002, 0.036
ARMS = scene.load("insert").arms
LOW, HIGH = (
    getattr(scene.load("insert"), name)[np.concatenate([arm.ctrl for arm in ARMS])]
    for name in ("ctrl_low", "ctrl_high")
)
HOME = scene.load("insert").home_ctrl[np.concatenate([arm.ctrl for arm in ARMS])]


@pytest.fixture(scope="module")
def base() -> Base:
    return read_base(shipped_base())


class Arms:
    """Arms that follow at once; closed fingers stop at what they hold."""

    def __init__(self, targets: np.ndarray, held: tuple[float, float], scale: float) -> None:
        self.targets, self._held, self._scale = targets.copy(), np.array(held), scale

    def felt(self) -> np.ndarray:
        """What is felt [32]."""
        at = self.targets.copy()
        at[IS_GRIPPER] = np.maximum(at[IS_GRIPPER], self._held)
        return joint_values(two_fingers(at), self.targets.reshape(2, 7)).astype(np.float32)

    def take(self, actions: np.ndarray) -> None:
        """Follows."""
        assert np.abs(actions).max() <= 1 + 1e-6
        self.targets = next_target(self.targets, actions, LOW, HIGH, self._scale)


def gone(way: InsertBack, arms: Arms, limit: int = 1000) -> np.ndarray:
    """Goes the whole way; returns the targets [T, 14]."""
    rows = [arms.targets]
    while (actions := way.act(arms.felt())) is not None:
        arms.take(actions)
        rows.append(arms.targets)
        assert len(rows) < limit
    return np.array(rows)


def inserted(base: Base, held: tuple[float, float], number: int = 0) -> tuple[InsertBack, Arms]:
    """Returns a way and arms that have moved towards each other since the switch, in a curve."""
    spec = insert_spec(base)
    way = InsertBack(spec, (0,))
    way.number = number
    way.begin()
    insert = scene.load("insert")
    targets = insert.model.key("preinsert").ctrl[np.concatenate([arm.ctrl for arm in ARMS])]
    targets = targets + np.where(IS_GRIPPER, EMPTY, 0.0)
    arms = Arms(targets, held, spec.student.action.scale)
    way.note(arms.felt(), False)
    for step in range(30):
        way.note(arms.felt(), True)
        actions = np.zeros(14)
        actions[[2, 9]] = -1.0
        actions[[1, 8]] = 1.0 if step < 15 else -0.5
        arms.take(actions)
    way.note(arms.felt(), True)
    return way, arms


def tips(targets: np.ndarray) -> np.ndarray:
    return tip_midpoints(two_fingers(targets))


def test_it_goes_out_as_it_came_in_and_then_near_to_where_insertions_begin(base: Base) -> None:
    before = scene.load("insert").model.key("preinsert").ctrl
    places = []
    for number in (0, 1, 4):
        way, arms = inserted(base, (HELD, HELD), number)
        entered = np.array(way._told)
        way.start(True)
        rows = gone(way, arms)
        far = [np.abs(entered - row).max(1).min() for row in rows[:25]]
        assert max(far) < 1e-4  # every target had been one on the way in
        steps = np.abs(np.diff(rows, axis=0)).max(1)
        assert steps.max() <= base.spec.action.scale + 1e-6
        assert (rows[:, IS_GRIPPER] < 0.004).all()  # it never lets go
        at = [
            arm.arm.polar(row)
            for arm, row in zip(arms_of(insert_spec(base)), rows[-1].reshape(2, 7), strict=True)
        ]
        meant = [
            arm.arm.polar(before[one.ctrl])
            for arm, one in zip(arms_of(insert_spec(base)), ARMS, strict=True)
        ]
        away = np.array(at) - np.array(meant)
        assert np.abs(away[:, 1]).max() < ELSEWHERE_M + 0.007
        assert (away[:, 2] > 0.06 - ELSEWHERE_M - 0.007).all()
        assert (tips(rows[-1])[:, 2] > base.spec.switch.off_height).all()
        places.append(np.array(at)[:, :4].ravel())
    assert np.abs(np.diff(places, axis=0)).max(1).min() > 0.005  # somewhere else each time


@pytest.mark.parametrize(
    ("held", "number", "success"),
    [
        ((HELD, EMPTY), 0, True),  # it fell
        ((EMPTY, EMPTY), 0, True),
        ((HELD, HELD), 0, False),  # a failure
        ((HELD, HELD), 2, True),  # every third time
    ],
)
def test_it_sets_down_what_it_holds_and_goes_home(
    base: Base, held: tuple[float, float], number: int, success: bool
) -> None:
    way, arms = inserted(base, held, number)
    way.start(success)
    rows = gone(way, arms)
    assert np.abs(rows[-1] - HOME)[~IS_GRIPPER].max() < 0.2
    assert (rows[-1, IS_GRIPPER] > OPEN - 0.005).all()
    for side, travel in enumerate(held):
        opened = int(np.argmax(rows[:, 7 * side + 6] > 0.012))
        height = tips(rows[opened])[side, 2]
        assert (height < 0.04) == (travel == HELD)  # what is held is let go on the table alone


def test_an_arm_that_may_not_go_back_is_not_waited_for_for_ever(base: Base) -> None:
    way, arms = inserted(base, (HELD, HELD))
    way.start(True)
    blocked = arms.targets.copy()
    for _ in range(30):
        assert way.act(arms.felt()) is not None
        arms.targets = blocked.copy()  # as the guard does
    rows = gone(way, arms)
    assert np.abs(rows[-1] - blocked).max() > 0.05


def test_both_arms_are_on_the_leash(base: Base) -> None:
    spec = insert_spec(base)
    one = Inserter(spec, Alone(spec), base, lambda: False, leash_rad=LEASH_RAD)
    one.begin((0,), False, False)
    seen = dict(next(row for row in base.policy.examples() if row["switched"]))
    measured = np.array(HOME)
    targets, apart = measured.copy(), []
    for _ in range(60):
        position = two_fingers(measured)
        seen["proprioception"] = joint_values(position, targets.reshape(2, 7)).astype(np.float32)
        actions = one.act(seen)
        targets = next_target(targets, actions, LOW, HIGH, spec.student.action.scale)
        apart.append(np.abs(targets - measured)[~IS_GRIPPER].max())
    assert 0.09 < max(apart) <= LEASH_RAD + 1e-6


def test_where_nobody_knows_the_truth_the_reward_ends_evaluations_too(base: Base) -> None:
    spec = insert_spec(base)

    class Sure(Held):
        def update(self, look: object) -> bool:
            return self.take(look is not None)

    one = Inserter(spec, Alone(spec), base, None, 0.25, Sure("insert"))  # pyright: ignore[reportArgumentType]
    for evaluation in (True, False):
        one.begin((0,), False, evaluation)
        for row in base.policy.examples():
            one.act({**row, "switched": np.array(True)})
            if one.phase is Phase.IDLE:
                break
        assert one.success
        assert not one.true_success
        assert one.notes().values["truth"] is None


@pytest.mark.parametrize("mode", ["slow", "full"])
def test_slow_arms_have_as_much_longer(base: Base, mode: DriveMode) -> None:
    spec = insert_spec(base)
    slower = slower_by(spec, mode)
    assert slower == pytest.approx({"slow": 0.4 / 0.15, "full": 1.0}[mode])
    lasted = []
    for switched in (True, False):
        back = InsertBack(spec, (0,))
        one = Inserter(spec, Alone(spec), base, lambda: False, back=back, slower=slower)
        one.begin((0,), False, False)
        seen = {**base.policy.examples()[0], "switched": np.array(switched)}
        while one.phase is Phase.ACT:
            one.act(seen)
        lasted.append(one.steps)
    assert lasted == [round(80 * slower), round(200 * slower)]


def test_what_counts_as_a_start() -> None:
    spec = insert_spec(read_base(shipped_base()))
    state: list[Start] = []
    simulation = Simulation(
        lambda qpos, targets: None, None, lambda: (state[-1].qpos, np.zeros(0), state[-1].targets)
    )
    arms = [Truth(one, simulation) for one in arms_of(spec)]
    truth = InsertTruth(object.__new__(Trials), simulation, arms)  # it judges nothing here
    socket, peg = (arm.object_qpos for arm in ARMS)
    drawn = [arm.draw(np.random.default_rng(0)).qpos for arm in arms]
    start = Start(drawn[0], HOME)
    start.qpos[peg] = drawn[1][peg]

    def judged(**changes: float) -> bool:
        qpos = start.qpos.copy()
        qpos[socket[2]] += changes.get("socket", 0.0)
        qpos[peg[2]] += changes.get("peg", 0.0)
        if "joined" in changes:
            qpos[peg[:3]] = qpos[socket[:3]] + [changes["joined"] * HALF_LENGTH, 0, 0]
        if "turned" in changes:
            w, x, y, z = qpos[socket[3:]]
            qpos[socket[3:]] = [-z, -y, x, w]  # by 180 degrees about the vertical
        state.append(Start(qpos, start.targets))
        return truth.in_region()

    assert judged()
    assert judged(socket=0.15, peg=0.15)
    assert not judged(socket=0.15)  # one hangs, the other lies
    assert not judged(peg=0.03)
    assert not judged(joined=1.0)
    assert not judged(joined=1.0, socket=0.15)
    assert not judged(turned=1.0)


EPISODES = 4


@pytest.mark.compiles
def test_a_student_inserts_again_and_again(
    base: Base, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held from the second on; the third is set down, and the fourth picked up."""
    monkeypatch.setattr(opened, "STARTS", 2)
    spec = insert_spec(base)
    back = InsertBack(spec, (0,))
    path = tmp_path / LOGS / "0000.run"
    path.parent.mkdir()
    director = online_cases.Unplaced(back, EPISODES)
    with (
        open_world(spec, RigConfig("sim", stepped=True)) as (arms, simulation, truth),
        LogWriter(path, {"task": "insert", "student_hash": spec.student_hash}) as log,
    ):
        acting = Inserter(spec, Alone(spec), base, truth.done, back=back)
        stage = Stage(acting, simulation, truth, director, log, False)
        outcome = Deployment(arms.robot, arms.cameras, acting, stage_config(spec), stage, log).run(
            stage
        )
    assert outcome.mode is Mode.RUN
    assert [one.truth for one in director.over] == [True] * EPISODES
    assert [one.returned for one in director.over] == [True] * EPISODES
    picked = [one.steps > 60 for one in director.over]
    assert picked == [True, False, False, True]
    records = RecordReader(path, strict=True).poll()
    said = [one.values.get("learning") for one in records if one.kind == "step"]
    assert {one["source"] for one in said if one} == {"base", "demo", "reset"}
    chains = Chains(spec)
    rows = [one for record in records for one in chains.take(record)]
    assert sum(one.terminated for one in rows if isinstance(one, Closed)) == EPISODES
    assert all(one.decisions > 5 for one in director.over)
    trials = read_trials([tmp_path], spec.pictures).trials  # as examples for a reward
    assert [one.inserted for one in trials] == [one.steps for one in director.over]
