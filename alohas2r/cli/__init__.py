"""The `alohas2r` command: each subcommand parses, calls one library function, and prints.

Figures go to stdout, everything else to stderr; with --json, stdout is one JSON object. Exit
codes: 0 done, 1 something that the message says how to put right, 2 wrong usage, 130 interrupted.
"""

from alohas2r.core import opengl

opengl.import_mujoco()

# In the order of the help.
from alohas2r.cli import project, train, pixels, online, distill, sweep  # noqa: E402  # isort: skip
from alohas2r.cli import record, evaluate, benchmark  # noqa: E402  # isort: skip
from alohas2r.cli import render, export, deploy, robot, calibrate, world  # noqa: E402  # isort: skip
from alohas2r.cli.app import EXTRAS, main, policy_folder  # noqa: E402
from alohas2r.cli.display import ProgressDisplay, duration_text, report_text  # noqa: E402

__all__ = [
    "EXTRAS",
    "ProgressDisplay",
    "benchmark",
    "calibrate",
    "deploy",
    "distill",
    "duration_text",
    "evaluate",
    "export",
    "main",
    "online",
    "pixels",
    "policy_folder",
    "project",
    "record",
    "render",
    "report_text",
    "robot",
    "sweep",
    "train",
    "world",
]
