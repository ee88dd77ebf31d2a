"""What a sampler proposes next, from what is known of the configurations before: by Optuna."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np

from alohas2r.core import stats
from alohas2r.core.types import Untyped
from alohas2r.experiments.sweep.space import Range, Space
from alohas2r.experiments.sweep.state import Plan, SweepState, Trial

if TYPE_CHECKING:
    import optuna


def check_installed() -> None:
    """Makes sure that there is a sampler.

    Raises:
      ModuleNotFoundError: Optuna is not installed.
    """
    import optuna  # noqa: F401


def propose(state: SweepState) -> dict[str, str]:
    """Returns the settings of the next configuration.

    The sampler is made anew from the configurations so far, so a sweep that was stopped goes on as it would have; its
    random numbers are those of the plan's seed and of the number of the configuration.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    plan = state.plan
    space = _distributions(plan.space)
    study = optuna.create_study(
        sampler=_sampler(plan, len(state.trials)),
        direction="maximize" if plan.maximize else "minimize",
    )
    for trial in state.trials:
        study.add_trial(_told(trial, plan, space))
    asked = study.ask(space).params
    values: dict[str, str] = {}
    for key, one in plan.space.items():
        if isinstance(one, Range):
            values[key] = one.text(float(asked[key]))
        else:
            values[key] = str(asked.get(key, one.values[0]))
    return values


def _sampler(plan: Plan, number: int) -> optuna.samplers.BaseSampler:
    """Returns the sampler for the configuration of that number."""
    import optuna

    seed = int(np.random.default_rng((plan.sampler_seed, number)).integers(2**32))
    if plan.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # which of these are experimental changes with the version
        return optuna.samplers.TPESampler(
            seed=seed,
            n_startup_trials=min(10, max(3, plan.trials // 3)),
            multivariate=True,
            constant_liar=True,
        )


def _distributions(space: Space) -> dict[str, Untyped]:
    """Returns key -> distribution of what is drawn."""
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    distributions: dict[str, Untyped] = {}
    for key, one in space.items():
        if not isinstance(one, Range):
            if len(one.values) > 1:
                distributions[key] = CategoricalDistribution(one.values)
        elif one.whole:
            distributions[key] = IntDistribution(int(one.low), int(one.high), log=one.log)
        else:
            distributions[key] = FloatDistribution(one.low, one.high, log=one.log)
    return distributions


def _told(trial: Trial, plan: Plan, space: dict[str, Untyped]) -> optuna.trial.FrozenTrial:
    """Returns a configuration as Optuna knows it: its interquartile mean, or how far it came."""
    from optuna.trial import TrialState, create_trial

    params: dict[str, object] = {}
    for key in space:
        one = plan.space[key]
        text = trial.values[key]
        params[key] = (int(text) if one.whole else float(text)) if isinstance(one, Range) else text
    value, way = None, {}
    if trial.stopped is not None:
        how = TrialState.PRUNED
        way = {int(trial.stopped["step"]): trial.stopped["value"]}
    elif trial.state == "done":
        how = TrialState.COMPLETE
        value = stats.interquartile_mean(list(trial.scores().values()))
    else:
        how = TrialState.FAIL if trial.state == "failed" else TrialState.RUNNING
    return create_trial(
        state=how, value=value, params=params, distributions=space, intermediate_values=way
    )
