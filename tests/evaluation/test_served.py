"""A policy on a server is measured like its file; chunks and the time of an answer count."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import pathlib
import sys
import threading
import urllib.request
from collections.abc import Iterator

import numpy as np
import pytest

pytest.importorskip("jax2onnx")
pytest.importorskip("msgpack")
pytest.importorskip("websockets")

import robot_cases
from stop_cases import StopAfter

from alohas2r.cli import app
from alohas2r.core.progress import Progress, Report
from alohas2r.core.stop import StopSignal
from alohas2r.core.types import JsonObject
from alohas2r.embodiment.aloha import CAMERAS, from_units, to_units
from alohas2r.errors import ArtifactError, BackendUnavailable, ConfigError, Interrupted
from alohas2r.evaluation import evaluate, served
from alohas2r.evaluation.episodes import episode_keys
from alohas2r.evaluation.served import Answer, OpenPiDialect, Plan, ServedConfig
from alohas2r.policies.onnx import exported
from alohas2r.policies.onnx.runtime import OnnxPolicy
from alohas2r.policies.remote.client import PolicyClient
from alohas2r.policies.remote.server import PolicyServer, ServerConfig
from alohas2r.tasks.protocol import EVAL_V1

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tools"))

import serve_lerobot  # pyright: ignore[reportMissingImports]

pytestmark = pytest.mark.compiles
STEPS, COUNT, SEED = 6, 2, 5
SHORT = dataclasses.replace(
    EVAL_V1, name="short", insert=dataclasses.replace(EVAL_V1.insert, steps=STEPS)
)


def run_plan(execute: int, took_s: float, steps: int) -> tuple[list[float | None], int]:
    """Returns what a plan did in each step, and how often it asked: the k-th answer is k.0, k.1, k.2."""
    asked = 0

    def ask() -> Answer:
        nonlocal asked
        asked += 1
        return Answer(np.array([[asked], [asked + 0.1], [asked + 0.2]]), took_s)

    plan = Plan(execute)
    done = [plan.next(ask) for _ in range(steps)]
    assert plan.held == sum(action is None for action in done)
    return [None if action is None else float(action[0]) for action in done], asked


@pytest.mark.parametrize(
    ("execute", "took_s", "done", "asked"),
    [
        (0, 0.0, [1.0, 1.1, 1.2, 2.0, 2.1, 2.2], 2),
        (1, 0.049, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 6),
        (2, 0.05, [None, 1.0, 1.1, None, 2.0, 2.1], 2),
        (0, 0.12, [None, None, 1.0, 1.1, 1.2, None], 2),
    ],
)
def test_arms_hold_still_while_the_server_thinks(
    execute: int, took_s: float, done: list[float | None], asked: int
) -> None:
    assert run_plan(execute, took_s, 6) == (done, asked)


def test_targets_of_other_policies_move_ours() -> None:
    dialect = OpenPiDialect(16)
    present = np.linspace(-0.3, 0.3, 14)
    wanted = present + 0.01
    action = dialect.action(to_units(wanted), present, 0.02)
    np.testing.assert_allclose(action, 0.5, atol=1e-5)
    far = dialect.action(to_units(present - 1), present, 0.02)
    np.testing.assert_array_equal(far, -1)
    np.testing.assert_allclose(from_units(to_units(present)), present, atol=1e-6)
    with pytest.raises(ArtifactError, match="14 targets"):
        dialect.action(np.zeros(7), present, 0.02)


@contextlib.contextmanager
def serving(file: pathlib.Path) -> Iterator[str]:
    """Serves an exported policy from a thread."""
    running = threading.Event()
    box: JsonObject = {}

    async def main() -> None:
        box["loop"], box["stop"] = asyncio.get_running_loop(), asyncio.Event()

        def ready(port: int) -> None:
            box["port"] = port
            running.set()

        server = PolicyServer(OnnxPolicy.load(file), ServerConfig(port=0))
        await server.run(box["stop"], ready)

    thread = threading.Thread(target=asyncio.run, args=(main(),), daemon=True)
    thread.start()
    assert running.wait(60)
    try:
        yield f"ws://127.0.0.1:{box['port']}"
    finally:
        box["loop"].call_soon_threadsafe(box["stop"].set)
        thread.join(30)


def test_a_served_file_does_what_the_file_does(tmp_path_factory: pytest.TempPathFactory) -> None:
    file = robot_cases.student(tmp_path_factory)
    expected = evaluate.run(
        exported.load(file), SHORT, episode_keys(SEED, 0, COUNT), 1, "exact"
    ).table
    with serving(file) as url:
        result = served.evaluate_server(
            url,
            COUNT,
            SEED,
            1,
            protocol=SHORT,
            config=ServedConfig(inference_ms=0),
            renderer="exact",
        )
    assert result["policy"] == OnnxPolicy.load(file).hash
    assert result["asked"]["speaks"] == "alohas2r"
    assert (result["asked"]["answers"], result["asked"]["held_steps"]) == (COUNT * STEPS, 0)
    for name, column in expected.items():
        np.testing.assert_allclose(
            result["table"][name].astype(float), column.astype(float), rtol=1e-3, atol=1e-3
        )


@contextlib.contextmanager
def openpi(requests: list[JsonObject]) -> Iterator[str]:
    """The server of LeRobot's policies, with one that moves the left waist by 0.01 rad a step."""

    def infer(request: JsonObject) -> np.ndarray:
        requests.append(request)
        steps = 0.01 * np.arange(1, 6)[:, None] * (np.arange(14) == 0)
        return request["state"] + steps

    with serve_lerobot.make_server(infer, {"policy": "waist"}, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        server.shutdown()
        thread.join(30)


def test_a_request_that_a_policy_refuses_leaves_the_connection_open() -> None:
    with openpi([]) as url, PolicyClient(url) as client:
        assert client.metadata == {"policy": "waist"}
        with pytest.raises(ArtifactError, match="KeyError: 'state'"):
            client.infer({"images": {}})
        client.reset()
        assert client.infer({"state": np.ones(14)}).shape == (5, 14)
        assert client.timing["infer_ms"] >= 0
        with urllib.request.urlopen(url.replace("ws:", "http:") + "/healthz") as answer:
            assert answer.status == 200


def test_servers_of_openpi_get_alohas_names_and_their_chunks_are_carried_out() -> None:
    requests: list[JsonObject] = []
    with openpi(requests) as url:
        result = served.evaluate_server(
            url,
            COUNT,
            SEED,
            1,
            protocol=SHORT,
            config=ServedConfig(execute=2, inference_ms=60, size=16),
            renderer="exact",
        )
    assert result["asked"]["speaks"] == "openpi"
    assert result["policy"] == "waist"
    # Each answer: one step held, two carried out.
    assert len(requests) == result["asked"]["answers"] == COUNT * STEPS // 3
    assert result["asked"]["held_steps"] == len(requests)
    for request in requests:
        assert set(request["images"]) == set(CAMERAS)
        assert all(one.shape == (3, 16, 16) for one in request["images"].values())
        assert request["state"].shape == (14,)
        assert "peg" in request["prompt"]


def test_what_had_ended_is_told_when_a_stop_is_asked_for_or_the_server_goes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(served, "AT_ONCE", 1)
    with serve_lerobot.make_server(
        lambda request: request["state"][None], {"policy": "still"}, "127.0.0.1", 0
    ) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        url = f"ws://127.0.0.1:{server.socket.getsockname()[1]}"

        def run(stop: StopSignal | None, progress: Progress) -> Interrupted:
            with pytest.raises(Interrupted) as caught:
                served.evaluate_server(
                    url,
                    3,
                    SEED,
                    1,
                    progress=progress,
                    protocol=SHORT,
                    config=ServedConfig(inference_ms=0, size=16),
                    renderer="exact",
                    stop=stop,
                )
            return caught.value

        def go(report: Report) -> None:
            if report.done == 1 and thread.is_alive():
                server.shutdown()
                thread.join(30)

        stopped, gone = run(StopAfter(STEPS), lambda report: None), run(None, go)
    for error in (stopped, gone):
        assert (error.done, error.total) == (1, 3)
        assert error.result is not None
        assert (error.result["episodes"], error.result["of"]) == (1, 3)
        assert error.result["asked"]["answers"] == STEPS
        assert error.result["success"]["rate"] == 0
    assert stopped.why == ""
    assert "No policy server" in gone.why


def test_what_does_not_go_together_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, part in (
        (["evaluate"], "POLICY and --server"),
        (["evaluate", "pick", "--server", "ws://x"], "POLICY and --server"),
        (["evaluate", "pick", "--inference-ms", "5"], "belong to --server"),
        (["evaluate", "--server", "ws://x", "--sweep", "latency"], "leave out the others"),
    ):
        assert app.main(arguments) == 1
        assert part in capsys.readouterr().err
    with pytest.raises(ConfigError, match="execute"):
        ServedConfig(execute=-1)
    with pytest.raises(BackendUnavailable, match="No policy server"):
        served.evaluate_server("ws://127.0.0.1:9", 1)
