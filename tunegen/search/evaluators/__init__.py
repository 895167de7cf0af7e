"""Says what configs take: measured on GPUs here, or predicted from the compiled kernel."""

from __future__ import annotations

from tunegen.search.evaluators._base import Choice, Evaluator
from tunegen.search.evaluators.measured import MeasuredEvaluator
from tunegen.search.evaluators.predicted import PredictedEvaluator

__all__ = ["Choice", "Evaluator", "MeasuredEvaluator", "PredictedEvaluator"]
