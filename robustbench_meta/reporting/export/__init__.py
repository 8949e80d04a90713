"""The leaderboard for others: CSV, Markdown, LaTeX and JSON. Nothing heavy is imported here."""

from __future__ import annotations

FORMATS = {"csv": ".csv", "markdown": ".md", "latex": ".tex", "json": ".json"}
"""What `bench export` writes, with the endings of its files."""
