"""Built-in learners, each a plugin like any other."""
