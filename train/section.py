"""What all sections of a stage file have in common."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Frozen, strict about types and names; the text under a field is its description."""

    model_config = ConfigDict(
        frozen=True, extra='forbid', strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
