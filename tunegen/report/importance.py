"""Which knobs matter: optuna's PED-ANOVA on what a search has tried."""

from __future__ import annotations

import warnings

import optuna

from tunegen.report.gather import Search

# With fewer configs a share is chance.
FEWEST = 8


def importances(search: Search, tokens: list[int]) -> dict[str, float]:
    """Share of each knob in how good a config is, the largest first; empty if too few configs are known.

    Args:
        search: The search.
        tokens: Token counts that a config is judged on.
    """
    tried = [(o.config, s) for o, s in zip(search.outcomes, search.scores(tokens), strict=True) if s is not None]
    choices = {name: list(dict.fromkeys(config[name] for config, _ in tried)) for name in (tried or [({}, 0)])[0][0]}
    choices = {name: values for name, values in choices.items() if len(values) > 1}
    if len(tried) < FEWEST or not choices:
        return {}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(storage=optuna.storages.InMemoryStorage())
    distributions = {name: optuna.distributions.CategoricalDistribution(values) for name, values in choices.items()}
    for config, score in tried:
        params = {name: config[name] for name in choices}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=dict(distributions), value=score))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))
