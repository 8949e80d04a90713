"""Built-in backbones, each a plugin like any other."""
