"""Twenty episodes of the shipped student: from its file, from a server, and through OpenPI's client."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import numpy as np
import pip_cases
import pytest
import robot_cases

from alohas2r.cli import app
from alohas2r.core.assets import policy_path
from alohas2r.deployment import log

pytestmark = pytest.mark.long
EPISODES = 20

# Runs in the other environment, where neither this package nor NumPy 2 is.
CLIENT = """
import sys
import numpy as np
from openpi_client.websocket_client_policy import WebsocketClientPolicy

port, path, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
steps = dict(np.load(path))
starts = steps.pop("episode_start")
client = WebsocketClientPolicy("127.0.0.1", port)
actions = []
for row, start in enumerate(starts):
    observation = {name: values[row] for name, values in steps.items()}
    actions.append(client.infer({**observation, **({"reset": True} if start else {})})["actions"][0])
np.save(out, np.stack(actions))
"""


def run_episodes(path: pathlib.Path, *policy: str) -> log.Run:
    """Lets simulated arms make the episodes, and returns what was logged."""
    words = ["deploy", "--robot", "sim", "--stepped", "--episodes", str(EPISODES), "--seed", "7"]
    assert app.main([*words, "--log", str(path), "--json", *policy]) == 0
    return log.read_run(path)


def test_server_and_published_client_act_as_the_file(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = pathlib.Path(policy_path("params/student")) / "policy.onnx"
    local = run_episodes(tmp_path / "local.run", "--policy", str(file))
    assert json.loads(capsys.readouterr().out)["policy"]
    with robot_cases.serving(file) as port:
        served = run_episodes(tmp_path / "served.run", "--server", f"ws://127.0.0.1:{port}")
        assert len({step.values["episode"] for step in local.steps}) == EPISODES
        assert len(served.steps) == len(local.steps)
        steps = [step for step in local.steps if "action" in step.arrays]
        wanted = np.stack([step.arrays["action"] for step in steps])
        np.testing.assert_allclose(served.stack("action"), wanted, rtol=0, atol=1e-5)

        names = [name for name in steps[0].arrays if name.startswith("observation/")]
        seen = {
            name.removeprefix("observation/"): np.stack([step.arrays[name] for step in steps])
            for name in names
        }
        starts = np.array([bool(step.values["episode_start"]) for step in steps])
        assert starts.sum() >= EPISODES
        np.savez(tmp_path / "steps.npz", allow_pickle=False, episode_start=starts, **seen)
        environment = tmp_path / "environment"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
        python = str(environment / "bin" / "python")
        # The client does not declare the last.
        pip_cases.install("openpi-client", "numpy<2", "typing_extensions", python=python)
        arguments = [str(port), str(tmp_path / "steps.npz"), str(tmp_path / "actions.npy")]
        subprocess.run([python, "-I", "-c", CLIENT, *arguments], check=True)
    np.testing.assert_allclose(np.load(tmp_path / "actions.npy"), wanted, rtol=0, atol=1e-5)
