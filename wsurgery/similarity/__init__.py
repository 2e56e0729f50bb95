"""How alike two networks' representations are, layer by layer."""
