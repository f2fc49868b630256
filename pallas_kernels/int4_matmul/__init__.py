"""Activations times packed int4 weights."""
