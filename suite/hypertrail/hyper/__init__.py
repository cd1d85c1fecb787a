"""Hyperparameters of a task, as their owner declares them: how each is held, bounded, shared, and spread over the steps."""

from .leaves import Free, Leaf, Linear, Log, Logit
from .schedules import Bins, EachStep, Spline
from .sharing import Shared

__all__ = ["Bins", "EachStep", "Free", "Leaf", "Linear", "Log", "Logit", "Shared", "Spline"]
