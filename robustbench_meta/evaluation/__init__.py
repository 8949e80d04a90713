"""From episodes to numbers, and whether to believe them."""
