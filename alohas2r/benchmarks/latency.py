"""How long one action takes: onnxruntime, jitted JAX, and the round trip through the server."""

from __future__ import annotations

import multiprocessing
import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime

from alohas2r.config import check
from alohas2r.core import progress as core_progress
from alohas2r.core.machine import describe_machine
from alohas2r.core.types import Array, JsonObject, PyTree
from alohas2r.errors import BackendUnavailable
from alohas2r.policies.onnx.runtime import OnnxPolicy
from alohas2r.policies.remote import client as remote_client
from alohas2r.policies.remote import server

if TYPE_CHECKING:
    from alohas2r.policies.onnx.network import Network

Act = Callable[[Mapping[str, np.ndarray]], np.ndarray]
_TURNS = 10  # turns in which the variants alternate, so that a noisy machine favours none
_WARM_UP = 20


def bench_policy(
    policy_path: str | os.PathLike[str],
    acts: int = 2000,
    paced_s: float = 20.0,
    rate_hz: float = 20.0,
    jax: bool = True,
    progress: core_progress.Progress | None = None,
) -> JsonObject:
    """Measures the latency of one action on the policy's recorded observations.

    "onnx": OnnxPolicy.act on one thread, checks and memory included. "jax": network and memory in
    one jitted function, from NumPy to NumPy, without checks; only for an artifact, as a file holds
    no JAX function. "server": the round trip to a server process on this machine. They take turns
    in one run, each flat out and then at the pace of the robot, where caches have gone cold and the
    processor sleeps between two actions.

    Args:
      policy_path: an artifact's directory, which is exported for this, or an exported file.
      acts: how many actions of each, flat out.
      paced_s: how long to act at the robot's pace, for each.
      rate_hz: that pace.
      jax: whether to measure JAX; without it, an exported file needs no JAX at all.
      progress: receives reports.

    Returns:
      "onnx", "jax" (None if not measured) and "server": each with "flat_out" and "paced",
      each with "count", "p50_ms", "p99_ms", "worst_ms", "mean_ms"; "onnx_over_jax": ratio of the
      medians "flat_out" and "paced" (None if not measured); "rate_hz", and "machine".

    Raises:
      ArtifactError: the policy cannot be read or exported.
      BackendUnavailable: the server does not start.
      ConfigError: a number out of range.
    """
    check(1 <= acts <= 10_000_000, f"acts = {acts} must be in 1..1e7")
    check(0 <= paced_s <= 86_400, f"paced_s = {paced_s} must be in 0..86400 s")
    check(0 < rate_hz <= 1000, f"rate_hz = {rate_hz} must be in (0, 1000]")
    source = pathlib.Path(policy_path)
    paced = round(paced_s * rate_hz)
    with tempfile.TemporaryDirectory() as folder:
        path, jitted = source, None
        if source.is_dir():
            from alohas2r.policies.onnx import export as onnx_export
            from alohas2r.policies.onnx import network as onnx_network

            path = pathlib.Path(folder) / "policy.onnx"
            onnx_export.export(source, path)
            if jax:
                jitted = _jitted(onnx_network.load_network(source))
        local = OnnxPolicy.load(path)
        with _served(path) as remote:
            variants: dict[str, Act] = {"onnx": local.act}
            variants |= {} if jitted is None else {"jax": jitted}
            variants["server"] = remote.act
            meter = core_progress.Meter(
                "bench", len(variants) * (acts + paced), progress, unit="actions"
            )
            measured = _measure(variants, local.examples(), acts, paced, rate_hz, meter)
    compared = {
        mode: round(measured["onnx"][mode]["p50_ms"] / measured["jax"][mode]["p50_ms"], 3)
        for mode in ("flat_out", "paced")
        if "jax" in measured and measured["jax"][mode] is not None
    }
    return {
        **{name: measured.get(name) for name in ("onnx", "jax", "server")},
        "onnx_over_jax": compared or None,
        "rate_hz": rate_hz,
        "machine": {
            **describe_machine(),
            "onnxruntime": onnxruntime.__version__,
            "threads": 1,
        },
    }


def _measure(
    variants: Mapping[str, Act],
    observations: list[dict[str, np.ndarray]],
    acts: int,
    paced: int,
    rate_hz: float,
    meter: core_progress.Meter,
) -> dict[str, JsonObject]:
    seconds: dict[str, dict[str, list[float]]] = {
        name: {"flat_out": [], "paced": []} for name in variants
    }
    for act in variants.values():
        for index in range(_WARM_UP):
            act(observations[index % len(observations)])
    done = 0
    for mode, count, period in (("flat_out", acts, 0.0), ("paced", paced, 1 / rate_hz)):
        for turn in range(_TURNS):
            share = count * (turn + 1) // _TURNS - count * turn // _TURNS
            for name, act in variants.items():
                seconds[name][mode] += _timed(act, observations, share, period)
                done += share
                meter.update(done)
    return {
        name: {mode: _summary(values) for mode, values in modes.items()}
        for name, modes in seconds.items()
    }


def _timed(
    act: Act, observations: list[dict[str, np.ndarray]], count: int, period: float
) -> list[float]:
    """Returns the seconds that each of `count` actions took, started `period` s apart."""
    seconds, due = [], time.perf_counter()
    for index in range(count):
        if period:
            due += period
            time.sleep(max(0.0, due - time.perf_counter()))
        observation = observations[index % len(observations)]
        started = time.perf_counter()
        act(observation)
        seconds.append(time.perf_counter() - started)
    return seconds


def _summary(seconds: list[float]) -> JsonObject | None:
    if not seconds:
        return None
    values = np.array(seconds) * 1000
    p50, p99 = np.quantile(values, [0.5, 0.99])
    return {
        "count": len(values),
        "p50_ms": round(float(p50), 4),
        "p99_ms": round(float(p99), 4),
        "worst_ms": round(float(values.max()), 4),
        "mean_ms": round(float(values.mean()), 4),
    }


def _jitted(network: Network) -> Act:
    """Returns a policy as one jitted JAX function with its memory, from NumPy to NumPy."""
    import jax
    import jax.numpy as jnp

    from alohas2r.embodiment import history

    memories = network.interface.memories
    weights = {name: jnp.asarray(value) for name, value in network.weights.items()}

    @jax.jit
    def step(state: PyTree, observation: Mapping[str, Array]) -> tuple[PyTree, Array]:
        inputs, states = dict(observation), []
        for index, memory in enumerate(memories):
            newest = inputs.pop(memory.observation)
            after, features = history.update(memory.history, state[index], newest, jnp)
            states.append(after)
            inputs[memory.feature] = features
        batch = {name: value[None] for name, value in inputs.items()}
        return tuple(states), network.apply(weights, batch)[0]

    sizes = {one.name: one.shape[0] for one in network.interface.inputs if one.shape}
    state = tuple(history.init(one.history, sizes[one.observation], jnp) for one in memories)

    def act(observation: Mapping[str, np.ndarray]) -> np.ndarray:
        nonlocal state
        state, actions = step(state, dict(observation))
        return np.asarray(actions)

    return act


@contextmanager
def _served(path: pathlib.Path) -> Iterator[remote_client.PolicyClient]:
    """Serves a file from a process of its own and connects to it."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(str(path), theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        if not ours.poll(60):
            raise BackendUnavailable("The policy server did not start within 60 s.")
        try:
            port = ours.recv()
        except EOFError as error:
            raise BackendUnavailable("The policy server ended before it was ready.") from error
        with remote_client.PolicyClient(f"127.0.0.1:{port}", timeout_s=30.0) as client:
            yield client
    finally:
        process.terminate()  # SIGTERM: a graceful end
        process.join(10)
        if process.exitcode is None:
            process.kill()
            process.join()
        ours.close()


def _serve(path: str, ready: Connection) -> None:
    server.serve(path, server.ServerConfig(port=0), lambda _, port: ready.send(port))
