"""What all request objects have in common."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

INT32_MAX = 2**31 - 1

Count = Annotated[int, Field(ge=0, le=INT32_MAX)]
PositiveCount = Annotated[int, Field(ge=1, le=INT32_MAX)]
TokenId = Annotated[int, Field(ge=0, le=INT32_MAX)]
Share = Annotated[float, Field(ge=0, le=1)]


class RequestModel(BaseModel):
    """An object in a request: unknown fields are ignored, types are not guessed (``"1"`` is no number), null is absent."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)
