"""The base of every configuration section, and the one section that all parts share.

A section is a frozen pydantic model that refuses unknown keys. The docstring under a field is its help text:
`trireme COMMAND --help` and the documentation are made from it. A default is written once, here or beside its owner.
"""

from typing import Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator


def is_list(annotation: object) -> bool:
    """Whether a setting of this type is a list, of any length and not none."""
    return get_origin(annotation) is tuple and get_args(annotation)[1:] == (...,)


class Section(BaseModel):
    """A frozen group of settings that refuses unknown keys; field docstrings are the help texts."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())

    @field_validator("*", mode="before")
    @classmethod
    def _null_is_an_empty_list(cls, value: object, info: ValidationInfo) -> object:
        """As it is none for other settings."""
        assert info.field_name is not None
        return () if value is None and is_list(cls.model_fields[info.field_name].annotation) else value

    def differs(self, name: str) -> bool:
        """Whether a setting is not what it is by default; which of the two the user wrote down makes no difference."""
        return bool(getattr(self, name) != type(self).model_fields[name].default)


class ModelConfig(Section):
    """Which model is trained, and in what number format."""

    path: str
    """A folder in Hugging Face format, or a name on the Hugging Face hub."""
    revision: str | None = None
    """Branch, tag or commit of a hub model; the default branch where it is not given."""
    tokenizer: str | None = None
    """Folder or hub name of the tokenizer; the model's own where it is not given."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Number format of the weights in the rollout engine and of the learner's forward pass."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Off, because such code can do anything on every machine of the run."""
    max_length: int | None = None
    """Longest sequence accepted, prompt and completion, in tokens; the model's own limit where it is not given."""
