"""The `alohas2r` command: each subcommand parses, calls one library function, and prints.

Figures go to stdout, everything else to stderr; with --json, stdout is one JSON object. Exit
codes: 0 done, 1 something that the message says how to put right, 2 wrong usage, 130 interrupted.
"""

from alohas2r.cli import teaching, distilling, pictures, serving, benching, robot  # isort: skip  (the order of the help)
from alohas2r.cli.common import (
    EXTRAS,
    ProgressDisplay,
    app,
    duration_text,
    main,
    policy_folder,
    report_text,
)

__all__ = [
    "EXTRAS",
    "ProgressDisplay",
    "app",
    "benching",
    "distilling",
    "duration_text",
    "main",
    "pictures",
    "policy_folder",
    "report_text",
    "robot",
    "serving",
    "teaching",
]
