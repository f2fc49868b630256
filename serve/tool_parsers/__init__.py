"""Parsers that turn a model's text, as it is generated, into text and tool calls (one file per text format)."""
