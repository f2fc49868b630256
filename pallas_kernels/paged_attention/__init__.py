"""Attention over keys and values kept in pages."""
