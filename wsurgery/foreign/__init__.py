"""Checkpoints of other libraries: their files, which are read and never executed, and their names for tensors."""
