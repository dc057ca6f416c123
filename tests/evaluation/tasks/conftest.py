"""Fixtures of the task tests."""

from tests.evaluation.tasks.integrity_runs import short_books, whole

__all__ = ["short_books", "whole"]
