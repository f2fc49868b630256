"""What the fields of jaxdeploy's pytree dataclasses hold."""

from typing import Any

Leaf = Any
"""An array, or what tree functions put in its place (a ShapeDtypeStruct, a sharding). The shape stands beside the field."""
