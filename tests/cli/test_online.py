"""The commands that teach where the robot stands."""

import json

import pytest

from alohas2r.cli import main


@pytest.mark.long
def test_demonstrate_and_learn_from_it(tmp_path, capsys):
    demos = tmp_path / "demos"
    words = ["demonstrate", "reach", "--stepped", "--episodes", "1", "--out", str(demos), "--json"]
    assert main(words) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["episodes"], result["by"], result["out"]) == (1, "script", str(demos))
    assert main(words) == 1
    assert "exists already" in capsys.readouterr().err
    settings = ["clone_steps=50", "hidden=(8,)", "final_episodes=1"]
    options = [word for setting in settings for word in ("--set", setting)]
    learn = ["learn", "reach", "--arm", "bc", "--demos", str(demos), "--stepped", *options]
    assert main([*learn, "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr()
    assert "Learnt reach" in said.out
    assert "0.0 min:" in said.out
    assert "episode 1 (evaluation)" in said.err
    assert "learn-v1+modified" in said.out


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["learn", "reach"], "learn needs demonstrations"),
        (["learn", "reach", "--demos", "nowhere"], "holds no demonstrations"),
        (["learn", "reach", "--demos", "x", "--set", "updates=3"], "multiple of policy_every"),
        (["learn", "reach", "--demos", "x", "--set", "wings=2"], "wings"),
        (["learn", "reach", "--demos", "x", "--resume"], "holds no demonstrations"),
        (
            ["learn", "reach", "--arm", "ferm", "--demos", "x", "--encoder", "student"],
            "the arm ferm must be one of contrastive, supervised, scratch",
        ),
        (["learn", "reach", "--demos", "x", "--encoder", "scratch"], "the arm residual must be"),
        (
            ["learn", "insert", "--demos", "x", "--reward", "truth", "--encoder", "contrastive"],
            "the encoder must stay student",
        ),
        (
            ["learn", "insert", "--arm", "ferm", "--demos", "x", "--reward", "truth"],
            "no arm 'ferm'",
        ),
        (["learn", "insert", "--arm", "tempo", "--encoder", "student"], "--arm tempo goes with"),
        (["learn", "reach", "--world-params", "robot.toml"], "must be spelt peg=MM"),
        (["learn", "reach", "--world-params", "peg=99"], "must lie in 10..35 mm"),
        (["learn", "insert", "--demos", "x"], "no other task, needs --reward"),
        (["learn", "insert", "--reward", "truth"], "learn needs demonstrations"),
        (["learn", "insert", "--demos", "x", "--reward", "truth", "--base", "y"], "y could not be"),
        (["learn", "insert", "--arm", "tempo", "--learner", "ws://x:1"], "--arm tempo goes with"),
        (["learn", "insert", "--arm", "tempo", "--coach", "keyboard"], "--arm tempo goes with"),
        (["learn", "insert", "--arm", "tempo", "--reward", "truth"], "--arm tempo goes with"),
        (["demonstrate", "insert", "--by", "script", "--out", "d"], "--by must be student"),
        (["demonstrate", "reach", "--base", "x", "--out", "d"], "--base goes with insert"),
        (["learn", "reach", "--arm", "tempo"], "--arm tempo goes with insert"),
        (["learn", "insert", "--arm", "tempo", "--minutes", "1"], "--arm tempo goes with insert"),
        (["learn", "reach", "--tempo", "0.6"], "goes with insert --arm tempo"),
        (["learn", "insert", "--arm", "tempo", "--tempo", "0.2"], "must lie in 0.4..1.2"),
        (["learn", "insert", "--arm", "tempo", "--base", "x.onnx"], "There is no policy x.onnx"),
        (["demonstrate", "reach", "--world-params", "pig=2", "--out", "d"], "knows no 'pig'"),
        (["demonstrate", "reach", "--by", "keyboard", "--out", "demos"], "needs a terminal"),
        (["learn", "insert", "--demos", "x", "--reward", "y"], "y holds no classifier"),
        (["learn", "reach", "--demos", "x", "--reward", "truth"], "and no other task, needs"),
        (["demonstrate", "reach", "--tries", "3", "--out", "d"], "--tries goes with insert"),
        (["train-reward", "nowhere", "--out", "d"], "nowhere holds no log of an insertion"),
        (["train-reward", "x", "--out", "d", "--set", "held_out=1"], "held_out must lie in (0, 1)"),
        (["train-reward", "x", "--out", "d", "--base", "y"], "y could not be"),
        (["learn", "reach", "--demos", "x", "--coach", "keyboard"], "needs a terminal"),
        (["demonstrate", "reach", "--by", "leader", "--out", "d"], "--by leader needs a terminal"),
        (
            ["learn", "reach", "--demos", "x", "--coach", "spacemouse"],
            "--coach spacemouse needs a terminal",
        ),
        (["demonstrate", "insert", "--by", "leader", "--out", "d"], "--by must be student"),
        (["learner", "--out", "there", "--host", "0.0.0.0"], "needs a key"),
        (["demonstrate", "reach", "--judge", "--out", "d"], "--judge goes with insert"),
        (["demonstrate", "insert", "--judge", "--out", "d"], "--judge needs a terminal"),
        (["learn", "insert", "--demos", "x", "--reward", "person"], "person needs --coach"),
        (
            *(["learn", "insert", "--demos", "x", "--reward", "person", "--coach", "leader"],),
            "--coach leader needs a terminal",
        ),
    ],
)
def test_bad_input_is_one_line(words, text, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 1
    error = capsys.readouterr().err
    assert text in error
    assert error.count("Error:") == 1
    assert len(error.strip().splitlines()) == 1
