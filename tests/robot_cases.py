"""What tests of deployment share: a tiny untrained student, exported, and a policy server."""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from alohas2r.sim import scene

_STUDENTS: list[pathlib.Path] = []


def student(factory: pytest.TempPathFactory) -> pathlib.Path:
    """Returns the ONNX file of a tiny untrained student on colour and depth, made once for all."""
    if not _STUDENTS:
        pytest.importorskip("jax2onnx")
        import jax
        import onnx_cases

        from alohas2r.embodiment.history import HistoryConfig
        from alohas2r.policies import artifact, vision
        from alohas2r.policies import spec as policies_spec
        from alohas2r.policies.networks import vision as vision_network
        from alohas2r.policies.onnx import samples
        from alohas2r.policies.spec import CameraSpec, StudentNetworkConfig
        from alohas2r.policies.switch import Switch

        network = StudentNetworkConfig((16,), "relu", (4, 4, 4), 8, 4)
        memory, switch = HistoryConfig((0.3,)), Switch(on_height=0.16)
        insert = scene.load("insert")
        spec = policies_spec.make_spec(insert, "rgbd", network, CameraSpec(), memory, switch, 0.015)
        draw = np.random.default_rng(0)
        shapes = jax.eval_shape(lambda: vision_network.init(spec, jax.random.PRNGKey(0)))
        params = jax.tree.map(lambda one: draw.normal(0, 0.2, one.shape), shapes)
        weights = vision_network.flatten(
            params, np.zeros(spec.features), np.full(spec.features, 0.5)
        )
        rows = samples.wrist_views(spec.cameras.size, 4, 1)
        rows[spec.vector] = draw.normal(0, 0.5, (4, spec.vector_size)).astype(np.float32)
        rows["switched"] = draw.random(4) < 0.5
        folder = factory.mktemp("student")
        artifact.save(vision.StudentPolicy(spec, weights, {}), folder / "student", rows)
        onnx_cases.export(folder / "student", folder / "student.onnx", 16)
        _STUDENTS.append(folder / "student.onnx")
    return _STUDENTS[0]


@contextlib.contextmanager
def serving(file: pathlib.Path, port: int = 0) -> Iterator[int]:
    """Serves a policy from a thread; gives the port."""
    from alohas2r.policies.onnx.runtime import OnnxPolicy
    from alohas2r.policies.remote.server import PolicyServer, ServerConfig

    server = PolicyServer(OnnxPolicy.load(file), ServerConfig(port=port))
    started = threading.Event()
    control: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def main() -> None:
        stop = asyncio.Event()
        control.append((asyncio.get_running_loop(), stop))
        await server.run(stop, lambda _: started.set())

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    assert started.wait(30)
    try:
        yield server.port
    finally:
        loop, stop = control[0]
        loop.call_soon_threadsafe(stop.set)
        thread.join(30)
        assert not thread.is_alive()
