"""Fixtures of the evaluation tests."""

from tests.evaluation.helpers import toys

__all__ = ["toys"]
