"""Brings nothing."""

ANSWER = 42
