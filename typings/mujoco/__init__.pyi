# MuJoCo's classes and functions come from extension modules without type information.
from typing import Any

def __getattr__(name: str) -> Any: ...
