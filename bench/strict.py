"""What every section of params.yaml is: frozen, with no key beyond the declared ones."""

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """Frozen, strict in its types, and no key beyond the declared ones."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
