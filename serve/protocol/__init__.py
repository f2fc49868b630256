"""Request objects of the HTTP API, validated by pydantic."""
