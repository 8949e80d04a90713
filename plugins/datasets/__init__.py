"""Built-in datasets, each a plugin like any other."""
