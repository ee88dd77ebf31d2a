"""Pages of evaluations, benchmarks and runs: what stands on them, and that they need nothing else."""

from __future__ import annotations

import dataclasses
import html.parser
import io
import json
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("jax")
pytest.importorskip("jinja2")

from opengl_cases import red, skip_without_opengl

from alohas2r.cli import app
from alohas2r.core import stats
from alohas2r.core.types import JsonObject
from alohas2r.errors import BackendUnavailable, ConfigError
from alohas2r.evaluation import evaluate, filming, report_gallery, report_page
from alohas2r.evaluation.evaluate import Episodes
from alohas2r.evaluation.filming import Keepers
from alohas2r.evaluation.report_gallery import Gallery, GalleryConfig
from alohas2r.evaluation.video import Film, FilmConfig
from alohas2r.rendering import video
from alohas2r.reporting import charts, figures, page
from alohas2r.reporting.page import Clip
from alohas2r.sim import scene
from alohas2r.tasks.pick.scoring import PickScorer
from alohas2r.tasks.protocol import EVAL_V1
from alohas2r.tasks.registry import find_task

pytestmark = pytest.mark.compiles
av = pytest.importorskip("av")
COUNT = 40
STAGES = ("grasped_both", "lifted_both", "entered", "inserted", "dropped", "out", "unstable")
NASTY = '"><script>alert(1)</script>&'


class Reader(html.parser.HTMLParser):
    """Reads a page, and makes sure that what is opened is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.seen if name == tag]


def table() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    good = np.arange(COUNT) % 4 != 0
    flags = {name: good.copy() for name in STAGES}
    flags |= {name: np.zeros(COUNT, bool) for name in ("dropped", "out", "unstable")}
    flags["grasped_both"][::8] = True  # half of the failures: every eighth episode
    return {
        **flags,
        "success": good,
        "arm_distance_mm": draw.normal(7, 3, COUNT),
        "peak_contact_force": np.where(good, draw.normal(5, 1, COUNT), np.nan),
        "time_to_success_s": np.where(good, draw.uniform(3, 6, COUNT), np.nan),
        "attempts": draw.integers(0, 3, COUNT),
        "peg_mm": np.full(COUNT, 20.0),
        "cause_delay_ms": 50.0 * (np.arange(COUNT) % 2),
    }


def result() -> JsonObject:
    rows = table()
    return {
        "protocol": "eval-v2",
        "protocol_hash": "0123abcd",
        "policy": "fedc9876",
        "phase": "insert",
        "engine": "cpu",
        "episodes": COUNT,
        "seed": 7,
        "draws": "00112233",
        "success": stats.rate_of(rows["success"]),
        "stages": {name: stats.rate_of(rows[name]) for name in STAGES},
        "success_within_s": {"4": stats.rate_of(rows["time_to_success_s"] <= 4)},
        "time_to_success_s": stats.quantiles(rows["time_to_success_s"]),
        "wall_s": 1.5,
        "table": rows,
    }


def film() -> bytes:
    frames = np.zeros((8, 32, 48, 3), np.uint8)
    for index, frame in enumerate(frames):
        frame[:, 4 * index : 4 * index + 8] = 200
    return video.clip(frames, 10)


def about(name: str = "params/student") -> report_page.About:
    clip = Clip("Episode 4", "failure", False, film(), report_gallery.anchor(4))
    return report_page.About(name, "nowhere", ("alohas2r evaluate x",), (clip,))


@pytest.fixture(scope="module")
def text() -> str:
    return page.render(report_page.build(result(), about(NASTY)))


def test_a_page_is_sound_and_needs_nothing_else(text: str) -> None:
    read = Reader(text)
    assert read.open == []
    # Whatever a page refers to lies within it.
    for _, attributes in read.seen:
        for name in ("src", "href", "srcset", "poster", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#"))
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org)", text)
    policies = [one["content"] for one in read.all("meta") if "http-equiv" in one]
    assert policies
    assert "default-src 'none'" in str(policies[0])
    anchors = {one.get("id") for _, one in read.seen}
    links = [str(one["href"]) for one in read.all("a")]
    assert links
    assert all(link.removeprefix("#") in anchors for link in links)


def test_names_are_text_and_no_markup(text: str) -> None:
    read = Reader(text)
    assert len(read.all("script")) == 1
    assert any(NASTY in part for part in read.text)


def test_the_page_says_what_the_result_says(text: str) -> None:
    read = Reader(text)
    words = " ".join(" ".join(read.text).split())
    rate = result()["success"]
    assert f"{rate['rate']:.1%} ({rate['low']:.1%} .. {rate['high']:.1%})".replace("%", "%") in (
        words.replace("% (", "% (")
    )
    for part in ("0123abcd", "fedc9876", "00112233", "alohas2r evaluate x", "delay (ms)"):
        assert part in words
    rows = read.all("tr")
    assert len(rows) == COUNT + 1
    # Half of the failures grasped, the others reached nothing.
    assert "reached nothing" in words
    assert "grasped both, no further" in words
    assert "lifted both, no further" not in words


def test_cells_sort_by_value_and_gaps_have_none() -> None:
    assert page.cell(2.0).order == 2.0
    assert page.cell(np.float64(np.nan)) == page.Cell("-", "")
    assert page.cell(np.True_).order == 1
    assert page.cell(None).order == ""


def test_long_tables_are_cut_and_say_so() -> None:
    count = page.MOST_ROWS + 5
    long = {name: np.resize(values, count) for name, values in table().items()}
    built = report_page.build({**result(), "table": long, "episodes": count}, about())
    whole = next(one for one in built.sections if one.title == "All episodes")
    (block,) = whole.blocks
    assert isinstance(block, page.Table)
    assert len(block.rows) == page.MOST_ROWS
    assert "2,000" in whole.note


def test_files_beside_the_page_hold_the_figures(tmp_path: pathlib.Path) -> None:
    written = report_page.write(result(), tmp_path / "new", about())
    assert [path.name for path in written] == ["index.html", "result.json", "episodes.csv"]
    kept = json.loads(written[1].read_text())
    assert kept["success"] == result()["success"]
    assert "table" not in kept
    assert len(written[2].read_text().splitlines()) == COUNT + 1


def complaints(opened: pathlib.Path, width: int) -> list[str]:
    """Returns what the console of a browser without network says about a page; its picture is beside the page."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    assert browser is not None, "Chromium is needed: apt-get install chromium"
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0")
    shot = opened.with_suffix(f".{width}.png")
    command = [
        *(browser, *options, "--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=2000"),
        *(f"--user-data-dir={opened.parent / 'browser'}", f"--window-size={width},1200"),
        *(f"--screenshot={shot}", opened.as_uri()),
    ]
    told = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stderr
    assert shot.stat().st_size > 1000
    return [line for line in told.splitlines() if "CONSOLE" in line]


@pytest.mark.long  # needs Chromium, which `make test` does not ask for
def test_a_browser_opens_the_page_without_complaint(tmp_path: pathlib.Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text("<script src='https://example.org/x.js'></script><script>nothing()</script>")
    assert complaints(bad, 800)
    written = report_page.write(result(), tmp_path / "new", about())[0]
    assert complaints(written, 390) == []


def test_films_show_failures_of_each_kind_first() -> None:
    chosen = report_gallery.choose(table(), GalleryConfig(failures=4, successes=2))
    good = table()["success"]
    assert [bool(good[index]) for index in chosen] == [False] * 4 + [True] * 2
    kinds = {bool(table()["grasped_both"][index]) for index in chosen[:4]}
    assert kinds == {False, True}
    none = report_gallery.choose({**table(), "success": np.ones(COUNT, bool)}, GalleryConfig())
    assert none == [0, 1, 2, 3]


def test_a_clip_is_a_film_of_the_frames() -> None:
    with av.open(io.BytesIO(film())) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert float(container.streams.video[0].average_rate) == 10.0
    assert len(pictures) == 8
    assert [int(np.argmax(one[16, :, 0] > 100)) // 4 for one in pictures] == list(range(8))


def rectangles(svg: str) -> list[tuple[float, float]]:
    """Returns y and height of the bars."""
    drawn = re.findall(
        r'<rect class="\w+" x="[\d.]+" y="([\d.]+)" width="[\d.]+" height="([\d.]+)"', svg
    )
    return [(float(top), float(height)) for top, height in drawn]


def test_parallel_coordinates_draw_each_line_through_its_values() -> None:
    lines = [
        charts.Line(("0.001", "relu"), 0.2, "first"),
        charts.Line(("0.1", "<swish>"), 0.8, "second"),
        charts.Line(("0.01", "relu"), 0.5, "third"),
    ]
    svg = charts.parallel_coordinates(("rate", "kind"), lines, "success", (True, False), True)
    assert svg.count("<path d=") == 3
    assert "&lt;swish&gt;" in svg
    assert "<swish>" not in svg
    # The best is drawn last; the logarithm puts the third half way up.
    ways = [part.split('"')[0] for part in svg.split('<path d="M')[1:]]
    starts = [float(way.split("L")[0].split()[1]) for way in ways]
    low, middle, high = starts
    assert low > middle > high
    assert middle == pytest.approx((low + high) / 2, abs=0.1)
    assert svg.index("first") < svg.index("third") < svg.index("second")
    down = charts.parallel_coordinates(("rate", "kind"), lines, "loss", (True, False), False)
    assert down.index("second") < down.index("third") < down.index("first")


def test_a_histogram_counts_every_value_once() -> None:
    values = {"good": np.array([1.0, 1.0, 2.0, np.nan]), "bad": np.array([2.0, 3.0])}
    svg = charts.histogram(values, "mm")
    assert svg is not None
    tips = re.findall(r"mm: (\d+)</title>", svg)
    assert sorted(map(int, tips)) == [1, 1, 1, 2]
    # Stacked: the failure at 2 stands on the success at 2.
    tops = rectangles(svg)
    assert len(tops) == 4
    unit = min(height for _, height in tops)
    assert max(height for _, height in tops) == pytest.approx(2 * unit, abs=0.2)
    assert charts.histogram({"good": np.ones(5)}, "mm") is None


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.37, 0.41), (-3, 250), (0, 1e-5), (1e6, 3e6)])
def test_ticks_are_round_few_and_within(low: float, high: float) -> None:
    marks = charts.ticks(low, high)
    assert 2 <= len(marks) <= 8
    assert all(low - 1e-9 <= mark <= high + 1e-9 * abs(high) for mark in marks)
    steps = np.diff(marks)
    np.testing.assert_allclose(steps, steps[0])
    first = steps[0] / 10 ** np.floor(np.log10(steps[0]) + 1e-9)
    assert round(first, 6) in (1, 2, 5)


def test_figures_of_any_shape_become_a_page(tmp_path: pathlib.Path) -> None:
    measured = {
        "raw_steps_per_s": 5000.0,
        "training_steps_per_s": 4000.0,
        "onnx": {"paced": {"p50_ms": 0.5}, "flat_out": {"p50_ms": 0.25, "count": 3}},
        "rows": [{"renderer": "raycast", "size": 32}, {"renderer": "opengl"}],
        "success": stats.rate(1, 4),
        "missing": None,
    }
    path = figures.write(measured, tmp_path, "Speed", "of nothing", "alohas2r bench")
    read = Reader(path.read_text())
    words = " ".join(" ".join(read.text).split())
    assert read.open == []
    for part in ("raw steps (per s)", "p50 (ms)", "raycast", "paced", "alohas2r bench"):
        assert part in words
    assert len(read.all("table")) == 2


@pytest.fixture(scope="module")
def filmed(
    random_policy: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[JsonObject, Gallery, Film]:
    """Two short episodes of an untrained pick policy, for a page and for a video."""
    skip_without_opengl()
    folder = tmp_path_factory.mktemp("films")
    entry = find_task("pick")
    whole = Film(entry, folder / "a.mp4", FilmConfig(2, height=48, width=64))
    gallery = Gallery(find_task("pick"), GalleryConfig(failures=1, height=48, width=64))
    short = dataclasses.replace(
        EVAL_V1, name="short", pick=dataclasses.replace(EVAL_V1.pick, steps=6)
    )
    keepers = Keepers([whole, gallery])
    measured = evaluate.evaluate(random_policy, 2, 7, 1, protocol=short, keeper=keepers)
    return measured, gallery, whole


def test_the_first_episodes_are_side_by_side_in_a_video(
    filmed: tuple[JsonObject, Gallery, Film],
) -> None:
    path = filmed[2].write()
    with av.open(str(path)) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(pictures) == 6
    # Two episodes of 64 x 48, each between lines of 4 and in a border of 1.
    assert pictures[0].shape == (48 + 2 * 4 + 2, 2 * (64 + 2), 3)
    for half in (pictures[0][6:-6, 2:64], pictures[0][6:-6, 68:130]):
        assert half.std() > 10


def test_a_video_shows_each_episode_with_its_block_and_outcome(tmp_path: pathlib.Path) -> None:
    skip_without_opengl()
    loaded = scene.load("pick")
    qpos = np.repeat(np.repeat(loaded.home_qpos[None, None], 4, 0), 2, 1)
    qpos[2:, 1, loaded.arms[0].object_qpos[0]] -= 10.0  # the second block leaves the picture
    ended = {
        "success": np.array([True, False]),
        "time_to_success_s": np.array([0.1, np.nan]),
        "block_half_side_mm": np.array([10.0, 30.0]),
    }
    scorer = PickScorer(EVAL_V1.pick, np.array([[0.01, 0.1], [0.03, 0.1]]))
    short = FilmConfig(2, after_s=5.0, height=150, width=200)
    whole = Film(find_task("pick"), tmp_path / "a.mp4", short)
    steps = np.array([4, 4])
    whole.keep(0, Episodes(ended, qpos, scorer, steps, None))  # pyright: ignore[reportArgumentType]
    with av.open(str(whole.write())) as container:
        frames = np.stack([one.to_ndarray(format="rgb24") for one in container.decode(video=0)])
    # Two lines of 12, a border of 2.
    assert frames.shape == (4, 150 + 2 * 12 + 2 * 2, 2 * (200 + 2 * 2), 3)
    first, second = frames[:, 16:-16, 4:200], frames[:, 16:-16, 208:-4]
    assert red(second[0]) > 1.5 * red(first[0]) > 0
    assert red(first[3]) > 0
    assert red(second[3]) == 0
    left, right = frames[:, :, 0].mean(1), frames[:, :, -1].mean(1)
    assert np.ptp(left[0]) < 20  # grey before success
    assert left[3].argmax() == 1
    assert left[3].max() > 100  # green then
    assert (right.argmax(1) == 0).all()  # failure


def test_a_video_that_cannot_be_made_is_refused_before_the_work(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"\.mp4 or \.webp"):
        Film(find_task("pick"), tmp_path / "a.gif")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(BackendUnavailable):
        Film(find_task("pick"), tmp_path / "a.mp4")
    assert filming.drawable(find_task("pick"))


def test_episodes_are_filmed_while_they_run(
    filmed: tuple[JsonObject, Gallery, Film],
) -> None:
    measured, gallery, _ = filmed
    clips = gallery.clips()
    assert [clip.good for clip in clips] == [False]
    assert clips[0].caption.startswith("failure")

    with av.open(io.BytesIO(clips[0].data)) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(pictures) == 3
    assert pictures[0].shape == (48, 64, 3)
    assert pictures[0].std() > 10
    built = report_page.build(measured, dataclasses.replace(about(), clips=tuple(clips)))
    assert Reader(page.render(built)).open == []


def test_report_goes_with_one_evaluation(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["evaluate", "pick", "--report", "x", "--sweep", "latency"]) == 1
    assert "--report is of one evaluation" in capsys.readouterr().err
    assert app.main(["evaluate", "pick", "--report", "/dev/null/x"]) == 1
    assert "/dev/null/x" in capsys.readouterr().err
