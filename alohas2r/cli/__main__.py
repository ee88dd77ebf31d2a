"""Runs the command line: python -m alohas2r.cli."""

import sys

from alohas2r.cli import main

sys.exit(main())
