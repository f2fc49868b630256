"""Quantize new keys and values and put them into their pages."""
