"""Built-in attacks, each a plugin like any other."""
