"""Training from an edited checkpoint, and evaluating what came of it."""
