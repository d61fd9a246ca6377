"""Command lines and recipes: flags are made from a typed config, Pydantic checks them, a mistake is one line.

Later layers win: what a finished stage saved_config | the recipe's section | the flags.
"""

import argparse
import dataclasses
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import pydantic
import yaml

from glo_core.common.errors import UserError
from glo_core.common.location import Location
from pipelines.common.logs import configure

Config = TypeVar("Config")
Values = dict[str, Any]
SECTIONS = ("preprocess", "train", "fit_prior", "render", "evaluate")
_INT = "tag:yaml.org,2002:int"
NUMBER = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")


def main(
    name: str,
    config_type: type[Config],
    run: Callable[[Config], Any],
    *,
    saved_config: Callable[[Values], Values] | None = None,
    argv: Sequence[str] | None = None,
) -> None:
    """Parse the command line of job `name`, run it, and end the process.

    Args:
        config_type: a dataclass with a documented field for each flag.
        saved_config: given the values so far, those that an earlier run of the same outputs saved_config.
    """
    configure(name)
    try:
        run(parse(name, config_type, saved_config=saved_config, argv=argv))
    except UserError as error:
        sys.exit(f"{name}: error: {error}")
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())
        sys.exit(f"{name}: error: {f'{error.filename}: ' if error.filename else ''}{reason}")
    except KeyboardInterrupt:
        sys.exit(f"{name}: interrupted; the same command goes on from what is finished")


def parse(
    name: str,
    config_type: type[Config],
    *,
    saved_config: Callable[[Values], Values] | None = None,
    argv: Sequence[str] | None = None,
) -> Config:
    """The config that the command line and its recipe describe.

    Raises:
        UserError: if a key is unknown, missing, or of the wrong type or value.
    """
    flags = vars(_parser(name, config_type).parse_args(argv))
    recipe = flags.pop("recipe", None)
    values: Values = _read_recipe(Path(recipe), name) if recipe else {}
    for flag, value in flags.items():
        _enter(values, flag.split("."), value)
    if saved_config is not None:
        values = _layered(saved_config(values), values)
    try:
        config = pydantic.TypeAdapter(config_type).validate_python(_numbers(values))
    except pydantic.ValidationError as error:
        raise UserError(_one_line(error)) from None
    return _absolute(config)


def _parser(name: str, config_type: type) -> argparse.ArgumentParser:
    parser = _OneLineParser(
        prog=f"jobs/{name}.py",
        description=(config_type.__doc__ or "").strip(),
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument(
        "--recipe", metavar="FILE", help=f"YAML file with sections {', '.join(SECTIONS)}; flags win over it"
    )
    _add_flags(parser, config_type, "")
    return parser


class _OneLineParser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise UserError(f"{message}; --help lists every flag")


def _add_flags(parser: argparse.ArgumentParser, config_type: type, prefix: str) -> None:
    hints, docs = get_type_hints(config_type), _descriptions(config_type)
    target = parser.add_argument_group(prefix.rstrip("."), (config_type.__doc__ or "").strip()) if prefix else parser
    fields = sorted(dataclasses.fields(config_type), key=lambda f: dataclasses.is_dataclass(hints[f.name]))
    for field in fields:
        kind, flag = hints[field.name], prefix + field.name
        if dataclasses.is_dataclass(kind):
            _add_flags(parser, kind, f"{flag}.")  # type: ignore[arg-type]
            continue
        repeated = get_origin(kind) is tuple
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        default = "" if required or field.default in ("", (), None) else f" (default: {_shown(field.default)})"
        item = get_args(kind)[0] if repeated else kind
        target.add_argument(
            f"--{flag.replace('_', '-')}",
            dest=flag,
            nargs="+" if repeated else "?" if item is bool else None,
            const="true" if item is bool else None,
            metavar=_metavar(item),
            help=docs.get(field.name, "").replace("%", "%%") + default,
        )


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _metavar(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "{" + ",".join(map(str, get_args(kind))) + "}"
    return {Path: "DIR", Location: "DIR", int: "N", float: "X", str: "TEXT", bool: "true|false"}.get(kind, "VALUE")


def _descriptions(config_type: type) -> dict[str, str]:
    """The lines below the fields of a dataclass and of those it extends."""
    found: dict[str, str] = {}
    for owner in reversed(config_type.__mro__):
        if dataclasses.is_dataclass(owner):
            schema = pydantic.TypeAdapter(owner).json_schema()
            schema = schema.get("$defs", {}).get(owner.__name__, schema)
            found |= {
                key: value["description"]
                for key, value in schema.get("properties", {}).items()
                if "description" in value
            }
    return found


class _RecipeLoader(yaml.SafeLoader):
    """YAML as people write it: 1:8 is text, and not the number 68 to the base 60."""

    yaml_implicit_resolvers = {  # noqa: RUF012 -- PyYAML declares it so.
        first: [(tag, pattern) for tag, pattern in resolvers if tag != _INT]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_RecipeLoader.add_implicit_resolver(_INT, re.compile(r"[+-]?(?:0|[1-9][0-9]*)$"), list("+-0123456789"))


def _read_recipe(path: Path, name: str) -> Values:
    """The section of job `name`; of the pipeline, all sections."""
    try:
        recipe = yaml.load(path.read_text(), _RecipeLoader)
    except FileNotFoundError:
        raise UserError(f"recipe={path}: no such file") from None
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"recipe={path}: not valid YAML ({' '.join(str(error).split())[:160]})") from None
    if not isinstance(recipe, dict) or not all(isinstance(section, dict) for section in recipe.values()):
        raise UserError(f"recipe={path}: must hold sections ({', '.join(SECTIONS)}) of keys")
    unknown = set(recipe) - set(SECTIONS)
    if unknown:
        raise UserError(f"recipe={path}: unknown section {sorted(unknown)[0]!r}; known are {', '.join(SECTIONS)}")
    return recipe if name == "pipeline" else dict(recipe.get(name, {}))


def _enter(values: Values, path: Sequence[str], value: Any) -> None:
    for key in path[:-1]:
        values = values.setdefault(key, {})
    values[path[-1]] = value


def _layered(below: Values, above: Values) -> Values:
    merged = dict(below)
    for key, value in above.items():
        nested = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _layered(merged[key], value) if nested else value
    return merged


def _numbers(value: Any) -> Any:
    """Read 1e6 as the number it is: YAML and the command line both give it as text."""
    if isinstance(value, Mapping):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    return float(value) if isinstance(value, str) and NUMBER.fullmatch(value) else value


def _one_line(error: pydantic.ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    match first["type"]:
        case "unexpected_keyword_argument":
            return f"unknown key {key!r}; --help lists every one"
        case "missing" | "missing_argument" | "missing_keyword_only_argument":
            return f"--{key.replace('_', '-')} is required"
        case "value_error":
            return first["msg"].removeprefix("Value error, ")
    message = first["msg"][0].lower() + first["msg"][1:]
    return f"{key}={first['input']!r}: {message}"


def _absolute(config: Config) -> Config:
    """Make every path absolute; inside a submitted job, whose directory is a copy, a relative one is refused."""
    inside_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    changes: Values = {}
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            changes[field.name] = _absolute(value)
        paths = [
            item for item in (value if isinstance(value, tuple) else (value,)) if isinstance(item, Path | Location)
        ]
        for path in paths:
            if inside_job and path.absolute() != path:
                raise UserError(
                    f"{field.name}={path}: a submitted job runs in a copy of the working directory; "
                    "give an absolute path"
                )
        if paths:
            absolute = tuple(path.absolute() for path in paths)
            changes[field.name] = absolute if isinstance(value, tuple) else absolute[0]
    return dataclasses.replace(config, **changes)  # type: ignore[type-var]
