"""Measures a policy with pegs of your sizes, and in your world: python measure.py [--episodes N]."""

from __future__ import annotations

import argparse
import pathlib
import tomllib

import alohas2r
from alohas2r.core.assets import policy_path
from alohas2r.deployment.worlds import evaluate_world
from alohas2r.tasks.protocol import EVAL_V1, modified

HERE = pathlib.Path(__file__).parent


def main() -> None:
    """Reads project.toml, runs the episodes, prints a table."""
    settings = tomllib.loads((HERE / "project.toml").read_text())
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--policy", default=settings["policy"])
    parser.add_argument("--episodes", type=int, default=settings["episodes"])
    given = parser.parse_args()
    policy = policy_path(given.policy)
    seed = settings["seed"]
    print(f"{given.policy}, {given.episodes} episodes each, 95% intervals")
    for peg_mm in settings["peg_mm"]:
        protocol = modified(EVAL_V1, peg_mm=peg_mm)
        result = alohas2r.evaluate(policy, given.episodes, seed, protocol=protocol)
        print(f"peg of {peg_mm:g} mm: {rate(result)}")
    result = evaluate_world(policy, HERE / settings["world"], given.episodes, seed)
    print(f"world {result['world']}: {rate(result)}")


def rate(result: dict) -> str:
    """Returns how often a peg was inserted."""
    success = result["success"]
    return f"inserted {success['rate']:.3f} ({success['low']:.3f} .. {success['high']:.3f})"


if __name__ == "__main__":
    main()
