"""Hypothesis strategies of small JSON schemas and of tools: what people ask for, short enough for a small model to fill."""

from hypothesis import strategies as st

NAMES = ("city", "count", "unit", "price", "tags", "note", "when", "ok", "größe", "is_open")
WORDS = ("red", "green", "blue", "small", "large", "north", "south", "a b", "x-1")


def scalars() -> st.SearchStrategy[dict]:
    """Schemas of strings, numbers, booleans and null, bounded."""
    lengths = st.fixed_dictionaries({"type": st.just("string"), "maxLength": st.integers(1, 12)})
    at_least = st.builds(
        lambda low, more: {"type": "string", "minLength": low, "maxLength": low + more},
        st.integers(0, 3),
        st.integers(0, 8),
    )
    patterns = st.sampled_from(["^[a-z]{2,6}$", "^[A-Z][a-z]{1,8}$", "^[0-9]{4}-[0-9]{2}$", "^(yes|no)$"])
    bounds = st.builds(
        lambda kind, low, span: {"type": kind, "minimum": low, "maximum": low + span},
        st.sampled_from(["integer", "number"]),
        st.integers(-50, 50),
        st.integers(0, 100),
    )
    words = st.lists(st.sampled_from(WORDS), min_size=1, max_size=4, unique=True)
    mixed = st.lists(st.sampled_from(["red", "1", 2, True, None, 2.5]), min_size=1, max_size=4, unique_by=repr)
    return st.one_of(
        lengths,
        at_least,
        patterns.map(lambda pattern: {"type": "string", "pattern": pattern}),
        bounds,
        words.map(lambda values: {"type": "string", "enum": values}),
        mixed.map(lambda values: {"enum": values}),
        st.sampled_from(WORDS).map(lambda value: {"const": value}),
        st.just({"type": "boolean"}),
        st.just({"type": ["boolean", "null"]}),
        lengths.map(lambda schema: {"anyOf": [schema, {"type": "null"}]}),
        lengths.map(lambda schema: {"type": ["string", "null"], "maxLength": schema["maxLength"]}),
    )


def objects(values: st.SearchStrategy[dict], most: int = 3) -> st.SearchStrategy[dict]:
    """Schemas of objects with up to ``most`` named properties, some of them required."""

    def build(properties: dict, required: list[bool], closed: bool) -> dict:
        schema: dict = {"type": "object", "properties": properties}
        schema["required"] = [name for name, needed in zip(properties, required, strict=False) if needed]
        return {**schema, "additionalProperties": False} if closed else schema

    properties = st.dictionaries(st.sampled_from(NAMES), values, min_size=1, max_size=most)
    return st.builds(build, properties, st.lists(st.booleans(), min_size=most, max_size=most), st.booleans())


def arrays(items: st.SearchStrategy[dict]) -> st.SearchStrategy[dict]:
    """Schemas of lists of at most three items."""
    return st.builds(
        lambda each, low, more: {"type": "array", "items": each, "minItems": low, "maxItems": low + more},
        items,
        st.integers(0, 1),
        st.integers(0, 2),
    )


def object_schemas() -> st.SearchStrategy[dict]:
    """Schemas of objects whose values are scalars, short lists, or objects of scalars."""
    return objects(st.one_of(scalars(), scalars(), arrays(scalars()), objects(scalars(), most=2)))


def tools(most: int = 3) -> st.SearchStrategy[list[dict]]:
    """The ``tools`` of a chat completions request."""

    def build(named: dict[str, dict]) -> list[dict]:
        return [
            {"type": "function", "function": {"name": name, "description": f"Does {name}.", "parameters": parameters}}
            for name, parameters in named.items()
        ]

    names = st.sampled_from(["get_weather", "add", "search-web", "book.table", "f"])
    return st.dictionaries(names, object_schemas(), min_size=1, max_size=most).map(build)
