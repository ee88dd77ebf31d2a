"""Options that several commands share."""

from __future__ import annotations

import pathlib
from typing import Annotated, Literal

import typer

from alohas2r.cli.app import policy_folder
from alohas2r.learning.run.loggers.registry import logger_names


def or_shipped(policy: pathlib.Path | None) -> pathlib.Path | None:
    """Returns the path of an option, or the shipped policy of that name, as other commands find it."""
    return None if policy is None else policy_folder(str(policy))


# Where the policy server's key is taken from; on a command line everybody on the machine sees it.
API_KEY = "ALOHAS2R_API_KEY"
Host = Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")]
Ports = Annotated[
    tuple[str, str] | None,
    typer.Option(
        metavar="LEFT RIGHT", help="Serial ports of both arms (/dev/ttyDXL_follower_* if left out)."
    ),
]
Cameras = Annotated[
    tuple[str, str] | None,
    typer.Option(metavar="LEFT RIGHT", help="Serial numbers of both wrist cameras."),
]
RobotFile = Annotated[
    pathlib.Path | None,
    typer.Option("--robot-file", help="What is known about the arms (robot.toml if there is one)."),
]
MotionSpeed = Annotated[Literal["slow", "full"], typer.Option(help="At whose speed limits.")]
Stepped = Annotated[
    bool, typer.Option("--stepped", help="Let simulated time stand still while the loop works.")
]
Preset = Literal["quick", "default"]
Resume = Annotated[
    bool, typer.Option("--resume", help="Continue the run in --out from its last checkpoint.")
]
Finish = Annotated[
    bool,
    typer.Option(
        "--finish",
        help="With --resume: learn no further, but write what the last checkpoint of --out has learnt.",
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of the preset."),
]
Minutes = Annotated[
    float | None, typer.Option(min=0, help="Stop cleanly after so much time; can be resumed.")
]
Log = Annotated[
    list[str] | None,
    typer.Option(
        metavar="|".join(logger_names()),
        help="Where figures and results go as well, beside metrics.jsonl and TensorBoard files in the run's"
        " folder; may be given twice. docs/loggers.md.",
    ),
]
Renderer = Annotated[
    Literal["auto", "raycast", "exact", "warp", "opengl", "madrona"],
    typer.Option(help="What draws the pictures; auto takes what suits this machine."),
]
Engine = Annotated[
    Literal["auto", "cpu", "warp"],
    typer.Option(
        help="What simulates: cpu, all cores; warp, an NVIDIA GPU; auto: warp where there is CUDA."
    ),
]
LearningEngine = Annotated[
    Literal["auto", "cpu", "warp"],
    typer.Option(
        help="What simulates and learns: cpu, all cores; warp, an NVIDIA GPU, which draws as well; "
        "auto: warp where there is CUDA."
    ),
]
WorldParams = Annotated[
    pathlib.Path | None,
    typer.Option(
        "--world-params",
        metavar="robot.toml",
        help="On robots like the one that alohas2r calibrate measured: its intervals are the ranges.",
    ),
]
