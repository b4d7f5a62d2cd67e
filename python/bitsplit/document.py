"""Validated, frozen data that people can read and write as YAML or JSON."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from bitsplit.errors import RecipeError


class Document(BaseModel):
    """Base of recipes, plans and reports: frozen, validated at construction, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            for key in data:
                if key not in cls.model_fields:
                    raise ValueError(f"unknown field {key!r}; {nearest(str(key), list(cls.model_fields))}")
        return data

    @classmethod
    def from_yaml(cls, source: str | Path) -> Self:
        """Read YAML from a file (a ``Path`` or a one-line string that ends in .yaml or .yml) or a text."""
        where, text = _text_of(source, (".yaml", ".yml"))
        try:
            data = yaml.load(text, Loader=_StrictLoader)
        except yaml.YAMLError as error:
            raise RecipeError(f"{where} is not valid YAML: {_one_line(error)}") from error
        return cls._from_data(data, where)

    @classmethod
    def from_json(cls, source: str | Path) -> Self:
        """Read JSON from a file (a ``Path`` or a one-line string that ends in .json) or a text."""
        where, text = _text_of(source, (".json",))
        try:
            data = json.loads(text, object_pairs_hook=_mapping_once)
        except ValueError as error:
            raise RecipeError(f"{where} is not valid JSON: {error}") from error
        return cls._from_data(data, where)

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """Read a file: JSON when its name ends in .json, else YAML."""
        path = Path(path)
        return cls.from_json(path) if path.suffix == ".json" else cls.from_yaml(path)

    @classmethod
    def _from_data(cls, data: Any, where: str) -> Self:
        if not isinstance(data, dict):
            raise RecipeError(f"{where} must hold fields and their values, got {type(data).__name__}")
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise RecipeError(f"{where}: {explain(error)}") from error

    def to_yaml(self, path: str | Path | None = None) -> str:
        """The document as YAML; written to ``path`` when one is given."""
        text = yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, width=110)
        return _written(text, path)

    def to_json(self, path: str | Path | None = None) -> str:
        """The document as JSON; written to ``path`` when one is given."""
        return _written(json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n", path)

    def fingerprint(self) -> str:
        """SHA-256 of the content: equal documents, equal fingerprints, on every machine."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def explain(error: ValidationError) -> str:
    """What is wrong with a document, in one line."""
    return "; ".join(_explain_one(item) for item in error.errors(include_url=False))


def _explain_one(item: Any) -> str:
    where = ".".join(str(part) for part in item["loc"])
    message = item["msg"].removeprefix("Value error, ")
    shown = (
        f" (got {item['input']!r})"
        if item["type"] != "value_error" and not isinstance(item["input"], dict)
        else ""
    )
    return f"{where}: {message}{shown}" if where else f"{message}{shown}"


def nearest(name: str, known: list[str]) -> str:
    """A hint for a name that is not known: the nearest ones, or all when none is near."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if near:
        return f"did you mean {' or '.join(repr(match) for match in near)}?"
    shown = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
    return f"known: {shown}"


class _StrictLoader(yaml.SafeLoader):
    """Plain data only, and a key written twice is an error instead of a silent loss."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key!r} is written twice", key_node.start_mark
                )
            seen.add(key if isinstance(key, Hashable) else None)
        return super().construct_mapping(node, deep)


def _mapping_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; a key written twice is an error there too."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{next(key for key in keys if keys.count(key) > 1)!r} is written twice")
    return found


def _text_of(source: str | Path, suffixes: tuple[str, ...]) -> tuple[str, str]:
    """Where a text comes from (for messages), and the text."""
    is_file = isinstance(source, Path) or ("\n" not in source and source.endswith(suffixes))
    if not is_file:
        return "the text", str(source)
    try:
        return str(source), Path(source).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot read {source}: {error}") from error


def _written(text: str, path: str | Path | None) -> str:
    if path is not None:
        Path(path).write_text(text, encoding="utf-8")
    return text


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
