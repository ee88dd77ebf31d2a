"""What learning reads of a log: executed actions, cuts, returns; a log that is still being written."""

from typing import Any

import numpy as np
import online_cases
import pytest

from alohas2r.core import assets
from alohas2r.core.records import MAGIC, Record, RecordReader, pack
from alohas2r.errors import ArtifactError
from alohas2r.learning.online.experience import Chains, Closed, Row, read_all
from alohas2r.learning.online.replay import SHIFTS, Replay, features_of, half_and_half
from alohas2r.policies.online.eyes import read_eyes

SPEC = online_cases.spec()
EYES = read_eyes(assets.data_path("params") / "student", "left")[0]
HOLD = 4


class Log:
    """Control steps as the loop logs them, written by hand."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.targets = np.tile(online_cases.HOME, 2).astype(np.float32)
        self.step, self.episode = 0, 0
        self._draw = np.random.default_rng(5)

    def begin(self, episode: int) -> None:
        self.episode, self.step = episode, 0
        self.put("episode", {"episode": episode}, {})

    def put(self, kind, values, arrays) -> None:
        self.records.append(Record(kind, values, arrays, 0))

    def act(self, move=None, mode: Any = "run", **said: Any) -> None:
        """One control step: what is seen, then what is sent."""
        learning = {
            "task": "reach",
            "source": "policy",
            "decision": self.step % HOLD == 0,
            "reward": 0.0,
            "terminated": False,
            "truncated": False,
            **said,
        }
        arrays = online_cases.observed(self.targets, self._draw)
        if mode == "run":
            arrays["action"] = np.zeros(14)
        values = {"episode": self.episode, "step": self.step, "mode": mode, "learning": learning}
        self.put("step", values, arrays)
        if move is not None:
            self.targets = self.targets + move
        self.step += 1

    def decisions(self, count, **said) -> None:
        for _ in range(count * HOLD):
            self.act(**said)


def closed(rows) -> list[Closed]:
    return [one for one in rows if isinstance(one, Closed)]


def replay_of(log, demos=False) -> Replay:
    replay = Replay(SPEC, EYES, demos)
    replay.add(read_all(SPEC, log.records))
    return replay


def test_executed_action_is_recovered_from_the_commands():
    log = Log()
    away = SPEC.arm.joints(online_cases.HOME, np.array([0.2, 0.36, 0.12, 0.5, 0.03]))
    log.targets[:7] = away
    log.begin(0)
    wanted = np.array([0.5, -0.25, 0.2, 0.3, -0.4])
    for part in (1.0, 0.5):  # the guard let half through in the second decision
        joint = SPEC.move(online_cases.proprioception(log.targets), wanted)
        for _ in range(HOLD):
            log.act((0.02 * part * joint).astype(np.float32))
    log.act(terminated=True, reward=1.0)
    first, second = closed(read_all(SPEC, log.records))
    np.testing.assert_allclose(first.action, wanted, atol=2e-3)
    np.testing.assert_allclose(second.action, 0.5 * wanted, atol=0.03)
    assert (first.reward, second.reward, second.terminated) == (0, 1, True)


def test_recent_actions_are_those_that_were_executed():
    log = Log()
    log.begin(0)
    step = 0.02 * SPEC.move(online_cases.proprioception(log.targets), np.array([1.0, 0, 0, 0, 0]))
    log.decisions(2, move=step.astype(np.float32))
    log.decisions(1)
    rows = [one for one in read_all(SPEC, log.records) if isinstance(one, Row)]
    assert not rows[0].recent.any()
    np.testing.assert_allclose(rows[2].recent[1:, 0], 1.0, atol=1e-4)
    assert not rows[2].recent[0].any()


def test_success_ends_and_a_time_out_goes_on_in_the_value():
    for ends, bootstrap in (
        ({"terminated": True, "reward": 1.0}, 0.0),
        ({"truncated": True}, 0.9**2),
    ):
        log = Log()
        log.begin(0)
        log.decisions(2)
        log.act(None, **ends)
        replay = replay_of(log)
        returns, reached, factor = replay.outcome(np.array([0, 1]), 3, 0.9)
        np.testing.assert_allclose(returns, [0.9 * bool(not bootstrap), float(not bootstrap)])
        np.testing.assert_allclose(factor, [bootstrap, 0.9 * bool(bootstrap)], rtol=1e-6)
        assert replay.decisions == 2
        if bootstrap:
            assert reached.tolist() == [2, 2]  # what was seen when the time was over


@pytest.mark.parametrize("how", ["hold", "retreat", "pictures", "missing", "reset", "event"])
def test_cuts_end_the_chain_in_what_was_seen_last(how):
    log = Log()
    log.begin(0)
    log.decisions(2)
    log.act()  # the third decision, of which nothing is learnt
    if how in ("hold", "retreat"):
        log.act(mode=how)
    elif how == "pictures":  # the policy was not asked
        log.act(mode="run")
        del log.records[-1].arrays["action"]
    elif how == "missing":
        log.step += 1
    elif how == "reset":
        log.act(source="reset", decision=False)
    else:
        log.begin(1)
    log.step = 4 * ((log.step + 3) // 4) if how != "event" else 0
    log.decisions(1)
    log.act(terminated=True, reward=1.0)
    replay = replay_of(log)
    returns, reached, factor = replay.outcome(np.array([0, 1]), 3, 0.5)
    assert not returns.any()
    assert reached.tolist() == [2, 2]
    np.testing.assert_allclose(factor, [0.25, 0.5])
    assert replay.decisions == 3  # two before the cut, one after
    assert replay.size == 4


def test_returns_of_three_decisions():
    log = Log()
    log.begin(0)
    log.decisions(1)
    log.decisions(1, reward=0.25)  # four steps, the first of which belongs to the decision before
    log.decisions(3)
    returns, reached, factor = replay_of(log).outcome(np.array([0]), 3, 0.5)
    np.testing.assert_allclose(returns, [0.25 + 0.5 * 0.75])
    assert (reached[0], factor[0]) == (3, 0.125)


def test_half_of_a_batch_is_demonstrations():
    log = Log()
    log.begin(0)
    log.decisions(6)
    demos, own, empty = replay_of(log, True), replay_of(log), Replay(SPEC, EYES, False)
    draw = np.random.default_rng(0)
    batch = half_and_half(demos, own, draw, 128, 3, 0.9)
    assert batch.demo.sum() == 64
    assert len(batch.demo) == 128
    assert batch.features.shape == (128, SPEC.features)
    assert half_and_half(demos, empty, draw, 128, 3, 0.9).demo.all()


def test_replay_from_the_log_equals_the_one_in_memory(tmp_path):
    log = Log()
    log.begin(0)
    log.decisions(70)
    path = tmp_path / "log.run"
    path.write_bytes(
        MAGIC + b"".join(pack(one.kind, one.values, one.arrays) for one in log.records)
    )
    one = replay_of(log)
    other = Replay(SPEC, EYES, False)
    other.add(read_all(SPEC, RecordReader(path, strict=True).poll()))
    batches = [each.sample(np.random.default_rng(1), 64, 3, 0.9) for each in (one, other)]
    assert one.size == other.size == 70
    for mine, theirs in zip(*batches, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_each_shift_is_seen():
    log = Log()
    log.begin(0)
    log.act()
    (row,) = read_all(SPEC, log.records)
    assert isinstance(row, Row)
    features = features_of(SPEC, EYES, row)
    assert features.shape == (len(SHIFTS), SPEC.features)
    assert len(np.unique(features[:, 0])) == len(SHIFTS)
    still = SPEC.features - 16 - 15
    assert (features[:, still:] == features[0, still:]).all()


def test_a_half_written_record_is_left_for_later(tmp_path):
    path = tmp_path / "log.run"
    reader = RecordReader(path, strict=True)
    assert reader.poll() == []
    parts = [pack("step", {"n": n}, {"x": np.arange(n + 1.0)}) for n in range(3)]
    content = MAGIC + b"".join(parts)
    taken = []
    for end in range(len(content) + 1):  # after each byte that arrives
        path.write_bytes(content[:end])
        taken += reader.poll()
        complete = sum(end >= len(MAGIC) + len(b"".join(parts[: n + 1])) for n in range(3))
        assert len(taken) == complete
    assert [one.values["n"] for one in taken] == [0, 1, 2]
    assert reader.offset == len(content)
    np.testing.assert_array_equal(taken[2].arrays["x"], [0, 1, 2])


def test_damage_and_foreign_files_are_said(tmp_path):
    path = tmp_path / "log.run"
    record = pack("step", {}, {"x": np.arange(50.0)})
    path.write_bytes(MAGIC + record[:-3] + b"xyz" + record)
    with pytest.raises(ArtifactError, match="damaged at byte"):
        RecordReader(path, strict=True).poll()
    assert RecordReader(path).poll() == []
    path.write_bytes(b"something else")
    with pytest.raises(ArtifactError, match="is no log of a run"):
        RecordReader(path).poll()
    path.write_bytes(MAGIC + b"\xff" * 40)
    with pytest.raises(ArtifactError, match="damaged"):
        RecordReader(path, strict=True).poll()
    log = Log()
    log.begin(0)
    log.act(task="pick")
    with pytest.raises(ArtifactError, match="task 'pick', not of 'reach'"):
        read_all(SPEC, log.records)
    log = Log()
    log.begin(0)
    log.act(source="somebody")
    with pytest.raises(ArtifactError, match="none of policy, demo"):
        read_all(SPEC, log.records)
    for name, value, text in (
        ("observation/left_rgb", np.zeros((16, 16, 3), np.uint8), "16 x 16"),
        ("observation/left_depth", None, "lacks observation/left_depth"),
    ):
        log = Log()
        log.begin(0)
        log.act()
        arrays = log.records[-1].arrays
        arrays.pop(name) if value is None else arrays.update({name: value})
        with pytest.raises(ArtifactError, match=text):
            read_all(SPEC, log.records)


def test_demonstrations_and_resets_are_counted_apart():
    log = Log()
    log.begin(0)
    log.decisions(2, source="demo")
    log.act(source="demo", terminated=True, reward=1.0)
    log.decisions(2, source="reset")
    log.begin(1)
    log.decisions(3, evaluation=True)
    chains = Chains(SPEC)
    rows = [one for record in log.records for one in chains.take(record)]
    assert (chains.counts.decisions, chains.counts.successes) == (2, 1)
    assert {one.source for one in rows if isinstance(one, Row)} == {"demo"}
    assert chains.task == "reach"
