"""Where settings come from: flags, then `LIVERSEG_…` in the environment, then YAML, then defaults."""

import difflib
import os
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import to_jsonable_python

from liverseg_core.config import Settings
from liverseg_core.errors import LiversegError

PREFIX = "LIVERSEG_"
_HERE = Path(__file__).parent
RECIPES = (_HERE / "recipes", _HERE.parent / "deployments" / "configs")
"""In an installed package, and in a checkout."""


def load_settings(
    config: str | None = None,
    overrides: Sequence[str] = (),
    environment: Mapping[str, str] = os.environ,
    **flags: Any,
) -> Settings:
    """Merge settings from everywhere they can come from.

    Args:
        config: A YAML file, or the name of a shipped recipe such as `phantom`.
        overrides: `key=value` with dots in the key and a YAML value, such as `train.steps=100`.
        environment: `LIVERSEG_STORE`, `LIVERSEG_TRAIN__STEPS` and so on; two underscores go down a level.
        flags: Top-level values from the command line; None means not given.

    Raises:
        LiversegError: LS201 for an unknown key or an unusable value, LS202 for a file that can't be read.
    """
    merged: dict[str, Any] = _read(config) if config else {}
    for name, text in sorted(environment.items()):
        path = name.removeprefix(PREFIX).lower().split("__")
        if name.startswith(PREFIX) and path[0] in _names(Settings):
            _put(merged, path, _value(text))
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            what = f"--set {override!r} has no value"
            raise LiversegError("LS201", what, "key=value", "Write --set train.steps=100, for example")
        _put(merged, key.strip().split("."), _value(text))
    merged |= {name: value for name, value in flags.items() if value is not None}
    try:
        return Settings.model_validate(merged)
    except ValidationError as error:
        raise _explain(error) from None


def every_setting(section: BaseModel) -> dict[str, Any]:
    """All settings as JSON, by the names they have in YAML; `canonical` leaves out what is in no key."""

    def plain(name: str) -> Any:
        value = getattr(section, name)
        return every_setting(value) if isinstance(value, BaseModel) else to_jsonable_python(value)

    return {field.alias or name: plain(name) for name, field in type(section).model_fields.items()}


def find_config(name: str) -> Path:
    """The file of a config given as a path or as a recipe's name."""
    for path in (Path(name), *(folder / f"{name}.yaml" for folder in RECIPES)):
        if path.is_file():
            return path
    known = sorted({path.stem for folder in RECIPES for path in folder.glob("*.yaml")})
    allowed = f"a YAML file, or one of {', '.join(known)}"
    raise LiversegError("LS202", f"there is no config {name!r}", allowed, "Check --config")


def _read(config: str) -> dict[str, Any]:
    path = find_config(config)
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
        trouble = str(error).replace("\n", " ")
        raise LiversegError("LS202", f"{path}: {trouble}", "plain YAML", "Correct the file") from None
    if not isinstance(content, dict | None):
        raise LiversegError("LS202", f"{path} holds no mapping", "sections of settings", "Correct the file")
    return content or {}


def _put(target: dict[str, Any], path: Sequence[str], value: object) -> None:
    for name in path[:-1]:
        below = target.setdefault(name, {})
        if not isinstance(below, dict):
            raise _unknown(".".join(path), [])
        target = below
    target[path[-1]] = value


def _value(text: str) -> Any:
    """The YAML value of a text; digits that YAML would change, as it does 0123, stay text."""
    try:
        value = yaml.safe_load(text)
    except (RecursionError, yaml.YAMLError):
        return text
    return text if isinstance(value, int) and text.isdigit() and str(value) != text else value


def _explain(error: ValidationError) -> LiversegError:
    """The first thing wrong, in the words of the settings."""
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    if first["type"] == "extra_forbidden":
        return _unknown(".".join(path), sorted(_keys(Settings)))
    value = reprlib.repr(first["input"])  # bounded: YAML's aliases can nest without end
    allowed = first["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return LiversegError("LS201", f"{'.'.join(path)} = {value}", allowed, "Correct the value")


def _unknown(key: str, known: Sequence[str]) -> LiversegError:
    meant = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"Did you mean {meant[0]}?" if meant else "See liverseg info --json for every key"
    return LiversegError("LS201", f"unknown setting {key!r}", "the settings that liverseg info lists", hint)


def _keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        key = f"{prefix}{field.alias or name}"
        yield key
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _keys(field.annotation, f"{key}.")


def _names(section: type[BaseModel]) -> set[str]:
    return {field.alias or name for name, field in section.model_fields.items()}
