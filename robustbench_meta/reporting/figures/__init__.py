"""Figures for papers: what `bench plot` draws. Nothing heavy is imported here."""

from __future__ import annotations

KINDS = {
    "curves": "accuracy over ε, a panel an attack",
    "heatmap": "learner × attack",
    "scenarios": "bars, a panel a scenario",
    "tradeoff": "clean against robust accuracy",
    "learning": "accuracy over meta-steps",
    "compare": "differences of two learners, with intervals",
}
"""The figures by their names, in the order in which they are made."""
FORMATS = ("pdf", "svg", "png")
