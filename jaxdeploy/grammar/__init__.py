"""Grammars that an answer must follow: compiled by llguidance, applied as a mask over the vocabulary."""
