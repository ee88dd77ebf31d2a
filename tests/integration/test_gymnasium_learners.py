"""Other people's learners run on the environments, as docs/gymnasium.md shows; in an environment of their own."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys
import venv

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "gymnasium.md").read_text(), re.S)


def block(word: str) -> str:
    (code,) = (code for code in BLOCKS if word in code)
    return code


def test_a_learner_of_thirty_lines_runs(capfd: pytest.CaptureFixture[str]) -> None:
    code = block("cross-entropy").replace("num_envs=256", "num_envs=26")
    assert len(code.splitlines()) <= 30
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=600)
    assert capfd.readouterr().out.count("generation") == 3


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An interpreter with this package, PyTorch and Stable-Baselines3; ALOHAS2R_SB3_PYTHON names a ready one."""
    ready = os.environ.get("ALOHAS2R_SB3_PYTHON")
    if ready is not None:
        return ready
    folder = tmp_path_factory.mktemp("learners")
    venv.create(folder, with_pip=True)
    program = str(folder / "bin" / "python")
    pip = [program, "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "torch==2.13.0", "stable-baselines3>=2.7"], check=True)
    subprocess.run(
        [*pip, "-c", str(ROOT / "constraints.txt"), f"{ROOT}[gymnasium]"], check=True, cwd=ROOT
    )
    return program


@pytest.mark.long
def test_stable_baselines3_learns(python: str) -> None:
    code = block("stable_baselines3").replace("num_envs=256", "num_envs=32")
    code = code.replace("batch_size=1024", "batch_size=256").replace("300_000", "4_096")
    code += "assert model.num_timesteps >= 4_096\nassert model.ep_info_buffer is not None\n"
    subprocess.run([python, "-W", "ignore", "-c", code], check=True, cwd=ROOT, timeout=900)


@pytest.mark.long
def test_gymnasium_finds_the_tasks_by_itself(python: str, tmp_path: pathlib.Path) -> None:
    code = block("render_mode").replace("picture = env.render()", "env.close()")
    subprocess.run([python, "-W", "ignore", "-c", code], check=True, cwd=tmp_path, timeout=600)
