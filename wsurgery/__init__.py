"""Composable checkpoint surgery on safetensors files."""

__version__ = "0.1.0"
