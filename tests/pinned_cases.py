"""What the draws and a few steps of the shipped policies are, to be compared between settings of JAX."""

from __future__ import annotations

import jax
import numpy as np

from alohas2r.core import assets
from alohas2r.evaluation import episodes, evaluate
from alohas2r.tasks.protocol import EVAL_V1, modified


def figures() -> dict[str, object]:
    """Returns the draws' digest, and every column of a few steps of the teacher and of the student."""
    jax.random.normal(jax.random.key(0), (3,))  # whatever else the process does
    short, figures = modified(EVAL_V1, seconds=0.25), {}
    for name in ("teacher", "student"):
        policy = evaluate.load_policy(assets.data_path("params") / name)
        table, qpos, *_ = evaluate.run(policy, short, episodes.episode_keys(7, 0, 2), 1, "exact")
        figures[name] = {key: np.asarray(column, float).tolist() for key, column in table.items()}
        figures[name]["qpos"] = np.asarray(qpos, float).tolist()
    result = evaluate.evaluate(assets.data_path("params") / "teacher", 1, 7, 1, protocol=short)
    figures["draws"], figures["hash"] = result["draws"], result["protocol_hash"]
    return figures
