"""Typed configurations: YAML in, `key=value` merged in key by key, one typed record out; unknown keys are refused."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from triglyph.errors import RecipeError

M = TypeVar("M", bound=BaseModel)


def parse_override(override: str) -> dict[str, Any]:
    """`a.b=value` as `{"a": {"b": value}}`."""
    key, sign, text = override.partition("=")
    parts = key.strip().split(".")
    if not sign or not all(parts):
        raise RecipeError(f"{override!r} is not key=value", where="--set", mend="write --set training.epochs=3")
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise RecipeError(f"the value of {key} is not YAML: {error}", where="--set", mend="quote it") from error
    for part in reversed(parts):
        value = {part: value}
    return value


def deep_merge(base: Mapping[str, Any], delta: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the leaves of `delta` put in; blocks are entered, never replaced."""
    merged = dict(base)
    for key, value in delta.items():
        old = merged.get(key)
        merged[key] = deep_merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def validated(model: type[M], values: Mapping[str, Any], *, where: object, noun: str) -> M:
    """Plain values as a typed record; errors name each key and the nearest known ones.

    Raises
    ------
    RecipeError
        A key or a value that is not understood.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems = []
        for problem in error.errors():
            key = ".".join(str(part) for part in problem["loc"])
            if problem["type"] == "extra_forbidden":
                known = _known_keys(model, problem["loc"][:-1])
                problems.append(f"{key} is no key of a {noun}{near(str(problem['loc'][-1]), known)}")
            elif problem["type"] == "missing":
                problems.append(f"{key} is missing")
            else:
                problems.append(f"{key or noun}: {problem['msg'].removeprefix('Value error, ')}")
        raise RecipeError("; ".join(problems), where=where, mend=f"correct the {noun} or the --set") from None


def read_yaml(path: Path, *, noun: str) -> dict[str, Any]:
    """A YAML file that holds a mapping; `noun` names what it is in errors."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"not readable as YAML: {error}", where=path, mend="correct the file") from error
    if not isinstance(values, dict):
        raise RecipeError(f"a {noun} is a mapping of keys", where=path, mend="give a file of keys and values")
    return values


def _known_keys(model: Any, location: tuple[int | str, ...]) -> list[str]:
    """Keys of the block at a location of a record."""
    for part in location:
        if isinstance(model, type) and issubclass(model, BaseModel):
            annotation = model.model_fields[str(part)].annotation
        else:
            annotation = get_args(model)[1]  # a dict of blocks
        model = _block(annotation)
    return list(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []


def _block(annotation: Any) -> Any:
    if get_origin(annotation) in (Union, UnionType):
        annotation = next(a for a in get_args(annotation) if a is not type(None))
    return annotation


def near(word: str, known: Iterable[str]) -> str:
    """`; did you mean ...?`, or nothing where no known word is near."""
    close = difflib.get_close_matches(word, list(known), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(close)}?" if close else ""


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads `1e-3` as text and keeps the last of two equal keys: here it is a number, and they are refused."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if twice := sorted({str(k) for k in keys if keys.count(k) > 1}):
            raise yaml.constructor.ConstructorError(None, None, f"given twice: {', '.join(twice)}", node.start_mark)
        return super().construct_mapping(node, deep)


def _add_floats() -> None:
    import re

    pattern = re.compile(r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$")
    _Loader.add_implicit_resolver("tag:yaml.org,2002:float", pattern, list("-+0123456789."))


_add_floats()
