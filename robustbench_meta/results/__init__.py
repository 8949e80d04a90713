"""Records of cells, and what is computed from them."""
