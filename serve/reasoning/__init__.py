"""Parsers that part a model's thinking from its answer."""
