"""Proves that a grid survives: kills, stops, company, full disks; and that long runs take no more and more memory."""
