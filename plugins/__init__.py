"""The built-in plugins. In a checkout, a file dropped here is found as a local plugin."""
