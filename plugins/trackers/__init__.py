"""Built-in trackers, each a plugin like any other."""
