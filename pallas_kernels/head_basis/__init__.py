"""Multiply heads by matrices: the change of basis that a rotated KV cache asks for."""
