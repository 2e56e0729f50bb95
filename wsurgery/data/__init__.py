"""Images and their labels: one manifest format, and what makes it, splits it, decodes it and augments it."""
