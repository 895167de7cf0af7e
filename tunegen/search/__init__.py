"""The search: optuna proposes configs, an evaluator says what they take, the best that is right wins."""
