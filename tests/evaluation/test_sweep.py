"""One condition varied, everything else as it is."""

from __future__ import annotations

import dataclasses
import pathlib

import pytest

from alohas2r.errors import ConfigError
from alohas2r.evaluation import sweep
from alohas2r.sim.variation import NEUTRAL
from alohas2r.tasks.protocol import EVAL_V1, EVAL_V2, TransferProtocol, without_causes
from alohas2r.tasks.registry import find_task

pytestmark = pytest.mark.compiles

INSERT = find_task("insert")
SHARED = pathlib.Path(__file__).parents[2] / "params"


def test_each_condition_of_robots_changes_what_it_names_and_nothing_else() -> None:
    assert INSERT.modified is not None
    of = {
        "action_delay_ms": {"action_delay_s"},
        "view_delay_ms": {"view_delay_s"},
        "zero_deg": {"zero_deg"},
        "travel_mm": {"travel_m"},
        "base_mm": {"base_m"},
    }
    seen = set()
    for conditions in INSERT.sweeps[EVAL_V2.name].values():
        for condition in conditions:
            rules = INSERT.modified(EVAL_V2, condition)
            assert isinstance(rules, TransferProtocol)
            changed = {
                field.name
                for field in dataclasses.fields(NEUTRAL)
                if getattr(rules.variation, field.name) != getattr(NEUTRAL, field.name)
            }
            expected = [of[name] for name, value in condition.items() if name in of and value]
            assert changed == set().union(*expected)
            plain = dataclasses.replace(rules, variation=NEUTRAL, name="", insert=EVAL_V2.insert)
            nominal = without_causes(EVAL_V2)
            assert plain == dataclasses.replace(nominal, name="", insert=EVAL_V2.insert)
            seen.add((rules.name, rules.hash))
    assert len({hash for _, hash in seen}) == len({name for name, _ in seen}) == len(seen)


def test_delays_and_calibrations_are_in_their_units() -> None:
    assert INSERT.modified is not None
    late = INSERT.modified(EVAL_V2, {"action_delay_ms": 150.0, "view_delay_ms": 50.0})
    assert isinstance(late, TransferProtocol)
    assert late.variation.steps("action_delay_s") == (3, 3)
    assert late.variation.steps("view_delay_s") == (1, 1)
    assert late.name == "eval-v2+causes=none+actions=150ms+view=50ms"
    off = INSERT.modified(EVAL_V2, {"zero_deg": 1.5, "travel_mm": 3.0})
    assert isinstance(off, TransferProtocol)
    assert (off.variation.zero_deg, off.variation.travel_m) == (1.5, 0.003)


def test_a_sweep_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"Unknown sweep 'calibration' of eval-v1"):
        sweep.sweep(SHARED / "teacher", "calibration", 1)
    with pytest.raises(ConfigError, match=r"no sweeps under eval-v2"):
        sweep.sweep(SHARED / "pick", "latency", 1, protocol=EVAL_V2.name)
    with pytest.raises(ConfigError, match=r"no protocol"):
        sweep.sweep(SHARED / "teacher", "latency", 1, protocol=f"{EVAL_V1.name}0")


def test_a_sweep_has_a_row_for_each_condition() -> None:
    swept = sweep.sweep(SHARED / "teacher", "recovery", 2, seed=7)
    assert [row["condition"] for row in swept["rows"]] == [{"seconds": 15.0}]
    assert swept["rows"][0]["episodes"] == 2
