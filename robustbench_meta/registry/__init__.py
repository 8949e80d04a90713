"""Finds plugins, and identifies their code."""
