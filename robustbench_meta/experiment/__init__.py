"""What is to be run: the grid of learners, attacks and scenarios."""
