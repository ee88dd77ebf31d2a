"""The package as users get it: a wheel, installed, used from another directory."""

from __future__ import annotations

import email
import os
import pathlib
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata

import pytest
from packaging.specifiers import SpecifierSet

import alohas2r

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    builder = [sys.executable, "-m", "hatchling", "build", "--target", "wheel"]
    subprocess.run([*builder, "--directory", str(folder)], cwd=ROOT, check=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", str(folder), str(wheel)], check=True)
    return folder


def run(
    installed: pathlib.Path, folder: pathlib.Path, *command: str
) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "ALOHAS2R_DATA"}
    environment["PYTHONPATH"] = str(installed)
    return subprocess.run(
        command,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_wheel_holds_the_scenes_the_policies_and_the_license(wheel: pathlib.Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        described = email.message_from_bytes(archive.read(metadata))
    for kind in ("xmls", "params"):
        tracked = subprocess.run(
            ["git", "ls-files", "--cached", kind],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        ).stdout.split()
        present = [
            str(path.relative_to(ROOT)) for path in (ROOT / kind).rglob("*") if path.is_file()
        ]
        for path in {*tracked, *present}:
            assert f"alohas2r/_data/{path}" in names
    assert not any(name.startswith(("tests/", "tools/")) for name in names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert described["Version"] == alohas2r.__version__
    assert described["License-Expression"] == "Apache-2.0"


def test_extras_cover_what_a_missing_package_is_said_to_need() -> None:
    from alohas2r.cli.app import EXTRAS

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert set(EXTRAS.values()) <= extras.keys()
    every = " ".join(extras["all"])
    assert all(extra in every for extra in extras if extra != "all")
    for text in project["dependencies"]:
        assert not text.startswith(("jax", "brax", "flax", "optax", "orbax"))


def test_every_requirement_is_pinned_and_no_registry_is_named() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    pinned = {name.lower().replace("_", "-") for name in pins}
    extras = project["optional-dependencies"]
    groups = [
        project["dependencies"],
        *(extras[name] for name in ("train", "export", "robot", "sweep", "dev")),
    ]
    for requirement in (item for group in groups for item in group):
        name = requirement.split(">=")[0].split("[")[0].lower()
        assert name == "alohas2r" or name in pinned, f"{requirement} is not in constraints.txt"


def test_what_is_pinned_runs_on_every_python_that_the_package_does() -> None:
    """A version that wants 3.11.5 leaves those out whose distribution has 3.11.2."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    oldest = f"{project['requires-python'].removeprefix('>=')}.0"
    checked, refused = 0, []
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        name, _, version = line.partition("==")
        try:
            found = metadata.metadata(name) if version else None
        except metadata.PackageNotFoundError:  # of an extra that is not installed
            continue
        if found is None or found["Version"] != version:
            continue
        checked += 1
        wants = ",".join(found.get_all("Requires-Python") or [])
        if not SpecifierSet(wants).contains(oldest):
            refused.append(f"{line} wants Python {wants}")
    assert checked > 20
    assert not refused


def test_scenes_and_policies_are_found_from_an_installed_wheel(
    installed: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    code = (
        "import alohas2r, pathlib, sys\n"
        "from alohas2r import cli\n"
        "from alohas2r.core.assets import data_path\n"
        "from alohas2r.sim import scene\n"
        "site = pathlib.Path(sys.argv[1]).resolve()\n"
        "assert pathlib.Path(alohas2r.__file__).resolve().is_relative_to(site), alohas2r.__file__\n"
        "for kind in ('xmls', 'params'):\n"
        "    assert data_path(kind).is_relative_to(site), data_path(kind)\n"
        "for name in scene.names():\n"
        "    assert scene.load(name).model.nq > 0\n"
        "for shipped in data_path('params').iterdir():\n"
        "    if shipped.is_dir():\n"
        "        assert cli.policy_folder(f'params/{shipped.name}') == shipped\n"
    )
    done = run(installed, tmp_path, sys.executable, "-c", code, str(installed))
    assert done.returncode == 0, done.stderr


def test_command_of_the_installed_wheel_runs(
    installed: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    command = str(installed / "bin" / "alohas2r")
    done = run(installed, tmp_path, sys.executable, command, "--help")
    assert done.returncode == 0, done.stderr
    assert "train-teacher" in done.stdout
    done = run(installed, tmp_path, sys.executable, command, "evaluate", "nowhere")
    assert done.returncode == 1
    assert "nowhere" in done.stderr
    assert "Traceback" not in done.stderr


def test_nothing_but_results_goes_to_stdout(
    installed: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    pytest.importorskip("brax")
    code = (
        "import sys\n"
        "sys.modules['warp'] = None\n"  # its absence makes other packages print
        "from alohas2r import cli\n"
        "cli.app.library('evaluation.evaluate')\n"
        "with cli.display.progress_display(): print('chatter')\n"
        "with cli.display.working('working'): print('chatter')\n"
    )
    done = run(installed, tmp_path, sys.executable, "-c", code)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert done.stderr.count("chatter") == 2


def test_without_the_extras_the_base_imports_and_the_rest_says_what_to_install(
    installed: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    code = (
        "import sys\n"
        "from alohas2r.cli import EXTRAS, main\n"
        "sys.modules.update(dict.fromkeys(EXTRAS))\n"  # None: cannot be imported
        "import alohas2r.policies.artifact, alohas2r.core.files, alohas2r.sim.scene, alohas2r.core.stats\n"
        "import alohas2r.sim.kinematics, alohas2r.rendering.video\n"
        "assert main(['--version']) == 0\n"
        "assert main(['train-teacher', '--phase', 'pick']) == 1\n"
        "sys.exit(main(['export', 'params/pick', '--out', 'pick.onnx']))\n"
    )
    done = run(installed, tmp_path, sys.executable, "-c", code)
    assert done.returncode == 1, done.stderr
    assert "pip install 'alohas2r[train]'" in done.stderr
    assert "pip install 'alohas2r[export]'" in done.stderr
    assert "Traceback" not in done.stderr
