"""Configuration: frozen pydantic sections, YAML files, dotted overrides; merged once, validated once.

    defaults < files, left to right < key=value overrides

A section sits beside the code that it configures and is composed by the root config of an entry point:

    class OptimConfig(Section):
        lr: float = Field(default=5e-6, gt=0)
        \"\"\"Peak learning rate.\"\"\"

    config = load_config(TrainConfig, files=["configs/pretrain/b32.yaml"], overrides=["optim.lr=1e-5"])

The docstring under a field is its help. All errors come in one `InputError`, each with the dotted key, where its value
came from, and for an unknown key the nearest valid one.
"""

import difflib
import hashlib
import json
import re
import sys
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import PydanticUndefined

from pipeline.errors import InputError, PipelineError
from pipeline.retry import retried


class Section(BaseModel):
    """Base of every config section: frozen, unknown keys forbidden, field docstrings are the help."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )


RootConfig = TypeVar("RootConfig", bound=Section)


def load_config(root: type[RootConfig], files: Sequence[str | Path] = (), overrides: Sequence[str] = ()) -> RootConfig:
    """Merge `files` and `overrides` and validate them as `root`. Raises one `InputError` that lists every mistake."""
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    try:
        for file in files:
            _merge(merged, read_yaml(file), origins, str(file))
        for override in overrides:
            _merge(merged, _parse_override(override), origins, f"override {override!r}")
    except RecursionError:
        raise InputError(
            "config: a value refers to itself (a YAML alias inside its own anchor); write it out"
        ) from None
    try:
        return root.model_validate(merged)
    except ValidationError as error:
        raise InputError(_report(root, error, origins)) from None


def parse_command_line(root: type[RootConfig], argv: Sequence[str], *, program: str, about: str) -> RootConfig:
    """The command line of a config-driven entry: `FILE.yaml... key=value... [--help]`."""
    if any(word in ("-h", "--help") for word in argv):
        print(render_help(root, program=program, about=about))
        sys.exit(0)
    files, overrides = split_arguments(argv, program=program)
    return load_config(root, files, overrides)


def split_arguments(argv: Sequence[str], *, program: str) -> tuple[list[str], list[str]]:
    """Split a command line into YAML files and `key=value` overrides; anything else is an `InputError`."""
    files: list[str] = []
    overrides: list[str] = []
    for word in argv:
        if word.startswith("-"):
            raise InputError(f"unknown option {word!r}; {program} takes FILE.yaml... and key=value..., see --help")
        if "=" in word:
            overrides.append(word)
        elif word.endswith((".yaml", ".yml")):
            files.append(word)
        else:
            raise InputError(f"{word!r} is neither a .yaml file nor key=value; see {program} --help")
    return files, overrides


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read one YAML mapping. Raises `InputError` for a missing file, broken YAML, a repeated key, or no mapping.

    RunError where the file system fails to read it.
    """
    try:
        content = yaml.load(retried(lambda: _content(Path(path)), Path(path)), _ConfigLoader)
    except PipelineError:
        raise
    except OSError as error:
        raise InputError(f"cannot read config {path}: {error.strerror}; check the path") from None
    except RecursionError:
        raise InputError(f"config {path} is nested too deeply; no config needs that") from None
    except Exception as error:  # a date that does not exist, a key that is a list: the parser has many ways to fail
        reason = " ".join(str(error).split())
        raise InputError(f"config {path} is not valid YAML: {reason}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InputError(f"config {path} must be a mapping of keys to values, but is a {type(content).__name__}")
    return content


def _content(path: Path) -> str:
    """The text of a file. Rights that its user has to change are no fault that may pass."""
    try:
        return path.read_text(encoding="utf-8")
    except PermissionError as error:
        raise InputError(f"cannot read config {path}: {error.strerror}; check its rights") from None


def to_yaml(config: Section) -> str:
    """The resolved config as YAML text that `load_config` reads back to an equal config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def config_hash(config: Section, exclude: set[str] | None = None) -> str:
    """16 hex digits over the resolved values (without the top-level keys in `exclude`); equal configs hash equally."""
    text = json.dumps(config.model_dump(mode="json", exclude=exclude), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def render_help(root: type[Section], *, program: str, about: str) -> str:
    """Usage, then every option with its type, default and meaning."""
    lines = [
        f"usage: {program} [FILE.yaml ...] [key=value ...]",
        "",
        about.strip(),
        "",
        "options (key: type = default):",
    ]
    for key, annotation, default, description in walk_fields(root):
        lines.append(f"  {key}: {annotation} = {default}")
        lines += [f"      {line}" for line in description.splitlines()]
    return "\n".join(lines)


def walk_fields(section: type[Section], prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Yield (dotted key, type, default, description) for every leaf option below `section`."""
    for name, field in section.model_fields.items():
        key = f"{prefix}{name}"
        inner = _inner_section(field.annotation)
        description = " ".join((field.description or "").split())
        is_single = isinstance(field.annotation, type) and issubclass(field.annotation, Section)
        if inner is not None and is_single:
            yield from walk_fields(inner, f"{key}.")
            continue
        if field.default is not PydanticUndefined:
            default = _shown(field.default)
        elif field.default_factory is not None:
            default = _shown(field.default_factory())  # type: ignore[call-arg]
        else:
            default = "(required)"
        yield key, _type_name(field.annotation), default, description
        if inner is not None:
            yield from walk_fields(inner, f"{key}.*.")


class _ConfigLoader(yaml.SafeLoader):
    """SafeLoader in which a repeated key is an error (YAML's silent 'last one wins' hides mistakes), and in which only
    `true` and `false` are booleans, as YAML 1.2 has it: `off`, `on`, `yes` and `no` are words, and the field that gets
    one decides what it means."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} appears twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


_ConfigLoader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)


def _parse_override(override: str) -> dict[str, Any]:
    dotted, _, text = override.partition("=")
    names = dotted.split(".")
    if not all(names):
        raise InputError(f"override {override!r} has an empty key; write section.key=value")
    try:
        value = yaml.load(text, _ConfigLoader) if text else ""
    except RecursionError:
        raise InputError(f"override {dotted}=...: the value is nested too deeply") from None
    except Exception as error:  # as in read_yaml
        raise InputError(
            f"override {override!r}: the value is not valid YAML: {' '.join(str(error).split())}"
        ) from None
    for name in reversed(names):
        value = {name: value}
    return typing.cast(dict[str, Any], value)


def _merge(into: dict[str, Any], new: dict[str, Any], origins: dict[str, str], origin: str, prefix: str = "") -> None:
    for name, value in new.items():
        key = f"{prefix}{name}"
        origins[key] = origin
        if isinstance(value, dict) and isinstance(into.get(name), dict):
            _merge(into[name], value, origins, origin, f"{key}.")
        elif isinstance(value, dict):
            into[name] = {}
            _merge(into[name], value, origins, origin, f"{key}.")
        else:
            into[name] = value


def _report(root: type[Section], error: ValidationError, origins: dict[str, str]) -> str:
    known = [key for key, *_ in walk_fields(root)] + _section_keys(root)
    lines = []
    for item in error.errors():
        # pydantic puts union tags into the location; only the words that are keys or list positions matter here.
        location = [str(part) for part in item["loc"] if not (isinstance(part, str) and "[" in part)]
        key = ".".join(location) or "(config)"
        origin = _origin(key, origins)
        if item["type"] == "extra_forbidden":
            nearest = nearest_name(key, known)
            hint = f"; did you mean {nearest!r}?" if nearest else "; see --help for the valid keys"
            lines.append(f"{key}: unknown key{origin}{hint}")
        elif item["type"] == "missing":
            lines.append(f"{key}: required, but not set")
        else:
            shown = "" if isinstance(item["input"], (dict, BaseModel)) else f" (got {item['input']!r})"
            message = item["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
            lines.append(f"{key}: {message}{shown}{origin}")
    if len(lines) == 1:
        return f"config: {lines[0]}"
    return f"config: {len(lines)} mistakes: " + " | ".join(lines)


def nearest_name(name: str, known: Sequence[str]) -> str | None:
    """The member of `known` most like `name` (by whole dotted key, else by its last word), or None."""
    whole = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    if whole:
        return whole[0]
    last = {candidate.rsplit(".", 1)[-1]: candidate for candidate in reversed(known)}
    near = difflib.get_close_matches(name.rsplit(".", 1)[-1], list(last), n=1, cutoff=0.6)
    return last[near[0]] if near else None


def _origin(key: str, origins: dict[str, str]) -> str:
    while key:
        if key in origins:
            return f" in {origins[key]}"
        key = key.rpartition(".")[0]
    return ""


def _section_keys(section: type[Section], prefix: str = "") -> list[str]:
    keys = []
    for name, field in section.model_fields.items():
        inner = _inner_section(field.annotation)
        if inner is not None:
            keys += [f"{prefix}{name}", *_section_keys(inner, f"{prefix}{name}.")]
    return keys


def _inner_section(annotation: Any) -> type[Section] | None:
    """The Section inside `annotation` (Section, list[Section], Section | None, dict[str, Section]), if there is one."""
    if isinstance(annotation, type) and not typing.get_origin(annotation):
        return annotation if issubclass(annotation, Section) else None
    for argument in typing.get_args(annotation):
        inner = _inner_section(argument)
        if inner is not None:
            return inner
    return None


def _type_name(annotation: Any) -> str:
    origin = typing.get_origin(annotation)
    if origin is typing.Literal:
        return " | ".join(repr(value) for value in typing.get_args(annotation))
    if origin in (typing.Union, types.UnionType):
        return " | ".join(_type_name(argument) for argument in typing.get_args(annotation))
    if origin is typing.Annotated:
        return _type_name(typing.get_args(annotation)[0])
    if origin is not None:
        return f"{origin.__name__}[{', '.join(_type_name(argument) for argument in typing.get_args(annotation))}]"
    if annotation is type(None):
        return "null"
    if annotation is Ellipsis:
        return "..."
    return getattr(annotation, "__name__", str(annotation))


def _shown(value: Any) -> str:
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    if isinstance(value, Path):
        value = str(value)
    return json.dumps(value, default=str)
