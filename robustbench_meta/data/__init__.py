"""Data sets on disk: how they are read without trusting them."""
