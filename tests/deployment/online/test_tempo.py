"""A policy at several tempos in a changed world: what is measured, resumed, refused and exported."""

import dataclasses
import json

import pytest

from alohas2r.cli import main
from alohas2r.deployment.online import tempo as tempos
from alohas2r.deployment.online.tempo import (
    TempoConfig,
    best_of,
    check_whole,
    learn_tempo,
    shipped_base,
)
from alohas2r.deployment.report import Outcome
from alohas2r.errors import ArtifactError, ConfigError
from alohas2r.policies.onnx.runtime import OnnxPolicy
from alohas2r.safety.config import FULL
from alohas2r.safety.reactions import Mode, Reactions
from alohas2r.sim.changed import WorldParams
from alohas2r.tasks.protocol import EVAL_V1

pytestmark = pytest.mark.compiles
SHORT = TempoConfig(
    shipped_base(),
    (0.6, 1.0),
    episodes=1,
    final_episodes=1,
    seconds=5.0,
    stepped=True,
    world=WorldParams(peg=22.0),
)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder, told = tmp_path_factory.mktemp("tempo") / "run", []
    result = learn_tempo(SHORT, folder, tell=told.append)
    assert [(one.tempo, one.number, one.episodes) for one in told] == [
        (0.6, 0, 1),
        (1.0, 0, 1),
        (result["tempo"], 0, 1),
    ]
    assert [one.success for one in told] == [bool(row["successes"]) for row in result["tempos"]]
    return folder, result


def test_the_best_tempo_is_exported(measured):
    folder, result = measured
    rows = result["tempos"]
    assert [(row["tempo"], row["final"]) for row in rows] == [
        (0.6, False),
        (1.0, False),
        (result["tempo"], True),
    ]
    assert rows[1]["successes"] == 1  # the student inserts such a peg at its own tempo
    assert rows[1]["time_to_success_s"] < SHORT.seconds
    assert result["tempo"] == 1.0  # of equals the fastest
    assert result["success"] == rows[-1]["rate"]
    assert result["protocol"] == "eval-v1+peg=22mm+seconds=5+world(peg=22)"
    assert result["protocol_hash"] != EVAL_V1.hash
    base, best = OnnxPolicy.load(SHORT.base), OnnxPolicy.load(folder / "policy.onnx")
    assert best.hash == result["policy_hash"]
    assert best.action["scale"] == pytest.approx(result["tempo"] * base.action["scale"])


def test_a_run_is_resumed_to_its_result(measured, capsys):
    """Killed before its last evaluation, the command measures that alone, and comes to the same."""
    folder, result = measured
    (folder / "policy.onnx").unlink()
    rows = (folder / "tempos.jsonl").read_text().splitlines(keepends=True)
    (folder / "tempos.jsonl").write_text("".join(rows[:-1]))
    words = ["learn", "insert", "--arm", "tempo", "--stepped", "--world-params", "peg=22"]
    words += ["--tempo", "0.6", "--tempo", "1", "--set", "episodes=1", "--set", "final_episodes=1"]
    words += ["--set", "seconds=5", "--resume", "--out", str(folder)]
    assert main([*words, "--json"]) == 0
    said = capsys.readouterr()
    assert {**json.loads(said.out), "wall_s": 0} == {**result, "wall_s": 0}
    assert said.err.count("episode 1 of 1") == 1
    assert (folder / "tempos.jsonl").read_text() == "".join(rows)
    assert (folder / "policy.onnx").exists()
    assert main(words) == 0
    assert "1 (other starts): " in capsys.readouterr().out


def test_other_runs_and_damage_are_said_in_a_line(measured, tmp_path):
    folder, _ = measured
    with pytest.raises(ConfigError, match="holds a run already"):
        learn_tempo(SHORT, folder)
    other = dataclasses.replace(SHORT, world=WorldParams(delay=3))
    with pytest.raises(ConfigError, match=r"config\.world\.peg: 22\.0 -> 20\.0"):
        learn_tempo(other, folder, resume=True)
    with pytest.raises(ArtifactError, match="holds no run to resume"):
        learn_tempo(SHORT, tmp_path / "none", resume=True)
    (tmp_path / "tempo.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"tempo\.json is damaged"):
        learn_tempo(SHORT, tmp_path, resume=True)
    (tmp_path / "tempo.json").write_bytes((folder / "tempo.json").read_bytes())
    (tmp_path / "tempos.jsonl").write_text("{\n")
    with pytest.raises(ArtifactError, match=r"tempos\.jsonl is damaged"):
        learn_tempo(SHORT, tmp_path, resume=True)
    with pytest.raises(ArtifactError, match="There is no policy"):
        learn_tempo(dataclasses.replace(SHORT, base="nowhere.onnx"), tmp_path)


def test_only_policies_of_the_insertion_have_a_tempo(tmp_path, monkeypatch):
    policy = OnnxPolicy.load(shipped_base())
    policy.description = {**policy.description, "phase": "pick"}
    monkeypatch.setattr(tempos, "load_policy", lambda path: policy)
    with pytest.raises(ArtifactError, match="is no policy of the insertion with both arms"):
        learn_tempo(SHORT, tmp_path)


def test_the_fastest_of_equals_is_best():
    rows = [
        {"tempo": tempo, "successes": count, "final": False}
        for tempo, count in ((0.4, 9), (0.6, 10), (0.8, 10), (1.0, 3))
    ]
    assert best_of([*rows, {"tempo": 0.4, "successes": 20, "final": True}]) == 0.8


def test_a_run_that_was_stopped_counts_no_tempo(tmp_path):
    whole = Outcome(Mode.RUN, 2, 0, 10, {}, {}, [])
    check_whole(whole, 2, 2, tmp_path)
    aborted = dataclasses.replace(whole, aborted=1, reasons=[("retreat", "too fast")])
    check_whole(aborted, 2, 2, tmp_path)  # the guard ended an episode: it failed
    with pytest.raises(ArtifactError, match=r"was stopped \(nobody said why\); --resume"):
        check_whole(whole, 1, 2, tmp_path)
    reactions = Reactions(FULL)
    reactions.retreat("Ctrl-C")
    reasons = [(mode.value, reason) for mode, reason in reactions.reasons]
    with pytest.raises(ArtifactError, match=r"was stopped \(request: Ctrl-C\)"):
        check_whole(dataclasses.replace(whole, reasons=reasons), 2, 2, tmp_path)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"tempos": (0.3,)}, r"tempo = 0\.3 must lie in 0\.4\.\.1\.2"),
        ({"tempos": ()}, "numbers, each of them once"),
        ({"tempos": (0.6, 0.6)}, "numbers, each of them once"),
        ({"episodes": 0}, r"episodes must be in 1\.\.10000"),
        ({"final_episodes": -1}, r"final_episodes must be in 0\.\.10000"),
        ({"seconds": 0.0}, r"seconds must be in 0\.05\.\.500"),
        ({"robot": "aloha"}, "needs --robot sim or emulated"),
    ],
)
def test_odd_settings_are_refused(changes, text):
    with pytest.raises(ConfigError, match=text):
        dataclasses.replace(SHORT, **changes)
