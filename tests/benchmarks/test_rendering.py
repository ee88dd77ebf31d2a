"""The renderers' benchmark, and the picture of what a student will see."""

from __future__ import annotations

import csv
import json
import os
import pathlib
import subprocess
import sys
import textwrap

import mujoco
import numpy as np
import pytest

from alohas2r.benchmarks import rendering, rendering_plot
from alohas2r.cli import app
from alohas2r.errors import ArtifactError, BackendUnavailable, ConfigError
from alohas2r.rendering import gallery
from alohas2r.rendering import protocol as rendering_protocol
from alohas2r.rendering import registry as renderers
from alohas2r.sim import scene

pytestmark = pytest.mark.compiles

pytest.importorskip("jax")


@pytest.fixture(scope="module")
def result() -> dict:
    heard: list[tuple[float, str]] = []
    config = rendering.BenchConfig(
        backends=("raycast", "madrona"),
        scenes=("cartpole",),
        sizes=(16,),
        environments=(1, 8),
        seconds=0.01,
        ratios=False,
    )
    found = rendering.bench_render(config, lambda share, text: heard.append((share, text)))
    shares = [share for share, _ in heard]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert any("cartpole" in text for _, text in heard)
    return found


def test_every_cell_is_measured_or_explained(result: dict) -> None:
    cells = {(row["environments"], row["physics"]) for row in result["rows"]}
    assert cells == {(1, False), (1, True), (8, False), (8, True)}
    for row in result["rows"]:
        assert row["renderer"] == "raycast"
        assert row["frames_per_second"] == row["environments_per_second"] * row["cameras"] > 0
        assert row["memory_mb"] > 10
        assert row["calls"] >= 2
    (skipped,) = result["skipped"]
    assert skipped["renderer"] == "madrona"
    assert skipped["reason"].startswith("not measured here")
    assert result["seconds"] > 0
    assert json.loads(json.dumps(result)) == result


def test_published_figures_name_hardware_and_source(result: dict) -> None:
    rows = result["published"]
    assert rows == rendering_plot.published()
    assert {row["renderer"] for row in rows} == {"Madrona-MJX", "ManiSkill3", "Isaac Lab"}
    for row in rows:
        assert row["hardware"]
        assert "arXiv" in row["source"]
        assert row["frames_per_second"] > 1000
    curve = [r for r in rows if r["renderer"] == "Madrona-MJX" and r["scene"] == "cartpole"]
    speeds = [row["frames_per_second"] for row in sorted(curve, key=lambda row: row["width"])]
    assert speeds == sorted(speeds, reverse=True)
    assert len(speeds) == 5


def test_table_and_plot_are_written(result: dict, tmp_path: pathlib.Path) -> None:
    with rendering_plot.write_csv(result, tmp_path / "new" / "bench.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(result["rows"]) + len(result["published"])
    assert {row["source"] for row in rows} > {"measured"}
    assert all(row["hardware"] for row in rows)
    pytest.importorskip("matplotlib")
    picture = rendering_plot.plot(result, tmp_path / "bench.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match=r"\.png"):
        rendering_plot.plot(result, tmp_path / "bench.jpg")
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="cannot be written"):
        rendering_plot.write_csv(result, tmp_path / "file" / "bench.csv")


def test_used_up_time_is_a_reason() -> None:
    config = rendering.BenchConfig(
        backends=("raycast",), scenes=("cartpole",), sizes=(16,), budget=1e-9, ratios=False
    )
    found = rendering.bench_render(config)
    assert not found["rows"]
    assert "used up" in found["skipped"][0]["reason"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"backends": ("raycaster",)}, "Did you mean 'raycast'"),
        ({"scenes": ("twoarms",)}, "Did you mean 'twoarm'"),
        ({"sizes": (0,)}, "sizes: 0"),
        ({"sizes": (10**6,)}, "sizes: 1000000"),
        ({"environments": (-1,)}, "environments: -1"),
        ({"seconds": 9.0}, "seconds"),
    ],
)
def test_configuration_is_checked(wrong: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rendering.BenchConfig(**wrong)


@pytest.mark.parametrize("text", ["8", "8x", "ax4", "8x8x8", "-2x3", ""])
def test_grids_are_rows_x_columns(text: str) -> None:
    assert gallery.parse_grid("2X13") == (2, 13)
    with pytest.raises(ConfigError, match="such as 8x8"):
        gallery.parse_grid(text)


def test_command_reports_and_writes_files(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["bench-render", "--renderers", "raycast,madrona", "--scenes", "cartpole"]
    arguments += [
        "--sizes",
        "8",
        "--envs",
        "1,2",
        "--no-physics",
        "--no-ratios",
        "--seconds",
        "0.01",
    ]
    files = ["--csv", str(tmp_path / "bench.csv"), "--plot", str(tmp_path / "bench.png")]
    assert app.main([*arguments, *files, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["environments"] for row in found["rows"]] == [1, 2]
    assert not any(row["physics"] for row in found["rows"])
    assert found["skipped"][0]["renderer"] == "madrona"
    assert found["published"]
    assert (tmp_path / "bench.csv").read_text().count("\n") == 1 + 2 + len(found["published"])
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--renderers", "raycats"], "Did you mean 'raycast'"),
        (["--scenes", "cartpol"], "Did you mean 'cartpole'"),
        (["--sizes", "32,big"], "'big' is no whole number"),
        (["--envs", "0"], "environments: 0"),
        (["--plot", "bench.jpg"], "must end in .png"),
    ],
)
def test_command_refuses_what_is_wrong_before_it_measures(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.main(["bench-render", *arguments]) == 1
    captured = capsys.readouterr()
    assert message in " ".join(captured.err.split())
    assert not captured.out


def test_command_draws_randomized_looks(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "looks.png"
    arguments = ["render", "--randomize", "--scene", "pick", "--grid", "1x2", "--size", "16"]
    assert app.main([*arguments, "--out", str(out)]) == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    width, height = (int.from_bytes(out.read_bytes()[at : at + 4], "big") for at in (16, 20))
    assert (width, height) == (2 * 2 * 2 * 17, 2 * 33)
    assert app.main(["render", "--randomize", "--grid", "0x2", "--out", str(out)]) == 1
    assert app.main(["render", "--randomize", "--out", str(tmp_path / "looks.mp4")]) == 1
    assert ".png" in capsys.readouterr().err


def test_cartpole_has_what_the_comparisons_have() -> None:
    model = gallery.cartpole().compile()
    assert (model.nq, model.ncam, model.nlight) == (2, 1, 1)
    prepared = rendering_protocol.prepare(gallery.cartpole())
    assert prepared.cameras == ("fixed",)
    assert prepared.model.ngeom == model.ngeom
    # The pole falls: nothing holds it up.
    data = mujoco.MjData(model)
    data.qpos[1] = 0.1
    mujoco.mj_step(model, data, 100)
    assert data.qpos[1] > 0.5


def test_random_poses_are_valid() -> None:
    for name in ("pick", "insert"):
        loaded = scene.load(name)
        poses = gallery.random_poses(loaded, 50)
        for arm in loaded.arms:
            np.testing.assert_allclose(np.linalg.norm(poses[:, arm.object_qpos[3:]], axis=1), 1)
            assert (np.sign(poses[:, arm.object_qpos[0]]) == np.sign(arm.base_pos[0])).all()
        np.testing.assert_array_equal(poses, gallery.random_poses(loaded, 50))


@pytest.mark.slow
@pytest.mark.alone
def test_ratios_hold_and_memory_is_bounded() -> None:
    # A process of its own: here everything that other tests have loaded would count as memory.
    code = """
    import json
    from alohas2r.benchmarks import rendering
    print(json.dumps(rendering.bench_render(rendering.BenchConfig(
        backends=("raycast", "warp"), scenes=("twoarm",), sizes=(32,), environments=(1024,),
        seconds=0.01, ratio_envs=32,
    ))))
    """
    # Compiled as a user's is, not as quickly as this module's: what is slow unoptimized is no measure.
    optimized = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    printed = subprocess.run(
        command, check=True, capture_output=True, text=True, env=optimized
    ).stdout
    found = json.loads(printed.splitlines()[-1])
    ratios = found["ratios"]
    # Half of what is asked for on a quiet machine.
    assert ratios["raycast_vs_bare_rays"] > 0.375
    assert ratios["shadows_vs_none"] > 0.25
    assert ratios["corruption_per_second"] > 500
    try:
        renderers.make("warp", scene.load("insert"))
    except BackendUnavailable:
        assert ratios["raycast_vs_warp"] is None
    else:
        assert ratios["raycast_vs_warp"] > 1.25
    drawn = [row["memory_mb"] for row in found["rows"] if row["renderer"] == "raycast"]
    memory = [ratios["memory_mb_1024"], *drawn]
    assert len(memory) >= 3
    assert min(memory) > 100
    assert max(memory) <= 1536


def test_picture_of_looks() -> None:
    picture = gallery.looks_grid(2, 3, name="pick", size=16, scale=1)
    # Colour above depth, one column per camera, a line between; right of it all again, corrupted.
    assert picture.shape == (2 * 33, 2 * 3 * 17, 3)
    clean, noisy = picture[:, : 3 * 17].astype(int), picture[:, 3 * 17 :].astype(int)
    assert (clean != noisy).mean() > 0.3
    depth = clean[17:33, :16]
    np.testing.assert_array_equal(depth[..., 0], depth[..., 2])
    np.testing.assert_array_equal(picture, gallery.looks_grid(2, 3, name="pick", size=16, scale=1))
    with pytest.raises(ConfigError, match="rows"):
        gallery.looks_grid(0, 3)
