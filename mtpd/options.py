"""Options that a user sets: sections of stage files and the options of losses."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

UserPath = Annotated[Path, AfterValidator(Path.expanduser)]
Share = Annotated[float, Field(ge=0, le=1)]


class Options(BaseModel):
    """Frozen, validated by pydantic, strict about types and names; the text below a field is its description."""

    model_config = ConfigDict(
        frozen=True, extra='forbid', strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
