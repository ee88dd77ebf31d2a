"""What a robot's computer imports needs none of what training needs."""

from __future__ import annotations

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
WITHOUT = ("core", "embodiment", "robots", "safety", "deployment")
# Modules of those packages that belong to trials in simulation.
TRIALS = {"alohas2r.deployment.trials", "alohas2r.deployment.worlds"}


def modules() -> list[str]:
    files = [path for name in WITHOUT for path in (ROOT / "alohas2r" / name).rglob("*.py")]
    # What `init` copies for its user is no module of the package.
    files = [path for path in files if "project_files" not in path.parts]
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files}
    names = {name.removesuffix(".__init__") for name in names}
    return sorted(
        {*names, "alohas2r.sim.scene", "alohas2r.sim.kinematics", "alohas2r.policies.onnx.runtime"}
        - TRIALS
    )


def test_no_jax_when_imported() -> None:
    assert len(modules()) > 40
    code = (
        "import importlib, sys\n"
        "blocked = ('jax', 'jaxlib', 'flax', 'brax', 'optax', 'orbax', 'matplotlib', 'av')\n"
        "sys.modules.update(dict.fromkeys(blocked))\n"  # None: cannot be imported
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *modules()],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
