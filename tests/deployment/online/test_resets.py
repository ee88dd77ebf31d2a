"""The robot picks, sets down what it holds somewhere else, and goes back to a start, again and again, by itself."""

import numpy as np
import online_cases

from alohas2r.core.records import RecordReader
from alohas2r.deployment.log import LogWriter
from alohas2r.deployment.loop import Deployment
from alohas2r.deployment.online.deciders import Scripted
from alohas2r.deployment.online.explorer import Explorer
from alohas2r.deployment.online.opened import stage_config
from alohas2r.deployment.online.scripts import ScriptedExpert
from alohas2r.deployment.online.stage import ResetDraws, Stage
from alohas2r.deployment.online.truth import Truth
from alohas2r.deployment.rig import RigConfig, open_rig
from alohas2r.learning.online.experience import Closed, read_all
from alohas2r.safety.reactions import Mode
from alohas2r.sim import scene

EPISODES = 3


def test_the_robot_goes_back_to_a_start_by_itself(tmp_path):
    spec = online_cases.spec("pick")
    back = ResetDraws(spec, (0,), True)
    director = online_cases.Unplaced(back, EPISODES)
    rig = RigConfig(
        "sim", stepped=True, stub_cameras=True
    )  # the reward of picking needs no picture
    with open_rig(rig, judged=False) as arms, LogWriter(tmp_path / "log.run", {}) as log:
        assert arms.simulation is not None
        truth = Truth(spec, arms.simulation)
        explorer = Explorer(spec, Scripted(ScriptedExpert(spec, truth.grip)), back, truth.done)
        stage = Stage(explorer, arms.simulation, truth, director, log, False)
        outcome = Deployment(
            arms.robot, arms.cameras, explorer, stage_config(spec), stage, log
        ).run(stage)
        assert truth.in_region()
    assert outcome.mode is Mode.RUN
    assert outcome.findings == {}
    for episode in director.over:
        assert episode.success
        assert episode.truth
        assert not episode.aborted
        assert 40 < episode.steps < 200
        assert episode.reset_steps > 40
    records = RecordReader(tmp_path / "log.run", strict=True).poll()
    place = scene.load("insert").arms[0].object_qpos[:2]
    starts = [one.arrays["qpos"][place] for one in records if one.kind == "episode"]
    assert len(starts) == EPISODES
    assert min(np.linalg.norm(np.diff(starts, axis=0), axis=1)) > 0.01  # somewhere else each time
    said = [one.values.get("learning") for one in records if one.kind == "step"]
    sources = {one["source"] for one in said if one}
    assert sources == {"demo", "reset"}
    closed = [one for one in read_all(spec, records) if isinstance(one, Closed)]
    assert sum(one.terminated for one in closed) == EPISODES
