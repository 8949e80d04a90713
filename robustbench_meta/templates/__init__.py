"""Plugins to start from, each whole and working: `bench plugins new` writes them under the name that is wanted."""
