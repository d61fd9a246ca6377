"""Command lines and recipes, read into the typed configs.

tyro makes the flags and the help from the dataclasses. A value stays text until the layers are
merged; then the type of its field reads it. Later layers win:
what an earlier run saved | the recipe's section | the flags.
"""

import dataclasses
import difflib
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import tyro
import yaml
from tyro import constructors

from glo_core.common.config import NoneWord
from glo_core.common.credentials import redact
from glo_core.common.errors import ConfigError, UserError, rename_settings
from jobs.values import read_saved, read_value, require_path, unwrap
from pipelines.common.logs import configure
from pipelines.common.stop_signals import STOPPED_STATUS, on_stop_signal

Config = TypeVar("Config")
Layer = dict[str, Any]
"""Values by setting, such as `code.dim`: text, a list of texts, or a value that a run saved"""
SavedConfig = Callable[[Layer], Mapping[str, Any]]
"""From the values of the job's own fields, the (nested) config that an earlier run saved"""
SECTIONS = ("preprocess", "train", "fit_prior", "render", "evaluate")
EMPTY = ("", "~", "null")
"""A section of a recipe that has no keys"""


def main(
    name: str,
    config_type: type[Config],
    run: Callable[[Config], Any],
    *,
    saved_config: SavedConfig | None = None,
    argv: Sequence[str] | None = None,
) -> None:
    """Parse the command line of job `name`, run it, and end the process.

    `run` imports PyTorch, Ray and MLflow itself, so that help and mistakes do not wait for them.
    """
    configure(name)
    sys.excepthook = _print_redacted
    try:
        _require_working_directory()
        with on_stop_signal(_interrupt):
            run(parse(name, config_type, saved_config=saved_config, argv=argv))
    except UserError as error:
        flags = {key: _flag(key) for key, f in _fields(config_type).items() if not f.nested}
        sys.exit(redact(f"{name}: error: {rename_settings(str(error), flags.get)}"))
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())
        sys.exit(redact(f"{name}: error: {f'{error.filename}: ' if error.filename else ''}{reason}"))
    except KeyboardInterrupt:
        print(f"{name}: interrupted; run the same command again to resume", file=sys.stderr)
        sys.exit(STOPPED_STATUS)


def _require_working_directory() -> None:
    try:
        Path.cwd()
    except FileNotFoundError:
        raise UserError("the working directory was deleted; change to another one, such as your home (cd)") from None


def _interrupt() -> None:
    raise KeyboardInterrupt


def _print_redacted(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """Print a traceback without secrets of URIs: libraries repeat those that they were given."""
    sys.stderr.write(redact("".join(traceback.format_exception(kind, error, trace))))


def parse(
    name: str,
    config_type: type[Config],
    *,
    saved_config: SavedConfig | None = None,
    argv: Sequence[str] | None = None,
) -> Config:
    """The config that the command line and its recipe describe.

    Raises:
        ConfigError: if a key is unknown or missing, or its value has the wrong type or range.
    """
    fields = _fields(config_type)
    settings = {key: field for key, field in fields.items() if not field.nested}
    flags = _read_flags(name, config_type, fields, sys.argv[1:] if argv is None else argv)
    path = read_value(Path, flags.pop("recipe"), "--recipe") if "recipe" in flags else None
    recipe = _read_recipe(path, name, fields) if path else {}
    # A message names a setting as the user wrote it.
    names = {key: _flag(key) for key in settings}
    names |= {key: f"{path}: {key}" for key in recipe if key not in flags}
    values = {k: read_value(settings[k].spec.type, v, names[k]) for k, v in (recipe | flags).items()}
    saved: Layer = {}
    if saved_config is not None:
        saved = _flatten(saved_config({key: v for key, v in values.items() if "." not in key}))
        _check_known(saved, settings, "unknown key in the saved config:")
        saved = {k: read_saved(settings[k].spec.type, v, k) for k, v in saved.items()}
    for key, value in values.items():
        if key not in saved or value != saved[key]:  # A run keeps copies of what it was begun with.
            require_path(settings[key].spec.type, value, names[key])
    values = saved | values
    for key, field in settings.items():
        if field.required and key not in values:
            raise ConfigError(f"{_flag(key)} is required")
    return _build(config_type, fields, values, names)


@dataclasses.dataclass(frozen=True)
class Field:
    """A field of a config, or of a config in it."""

    owner: type
    spec: Any
    """As tyro sees it: name, type, default, and the text below it"""

    @property
    def nested(self) -> bool:
        """Whether the field holds another config."""
        return dataclasses.is_dataclass(self.spec.type)

    @property
    def required(self) -> bool:
        """Whether the field must be given."""
        return self.spec.default is tyro.MISSING_NONPROP and not self.nested


Fields = dict[str, Field]
"""By dotted name, such as `code` and `code.dim`"""


def _fields(config_type: type, prefix: str = "") -> Fields:
    info = constructors.StructTypeInfo.make(config_type, tyro.MISSING_NONPROP, False)
    struct = constructors.ConstructorRegistry.get_struct_spec(info)
    assert isinstance(struct, constructors.StructConstructorSpec)
    fields: Fields = {}
    for spec in struct.fields:
        key = prefix + spec.name
        fields[key] = Field(config_type, spec)
        if fields[key].nested:
            fields |= _fields(spec.type, f"{key}.")
    return fields


def _build(config_type: Any, fields: Fields, values: Layer, names: Mapping[str, str], prefix: str = "") -> Any:
    own = {}
    for key, field in fields.items():
        if field.owner is config_type and field.nested:
            own[field.spec.name] = _build(field.spec.type, fields, values, names, f"{key}.")
        elif field.owner is config_type and key in values:
            own[field.spec.name] = values[key]
    try:
        return config_type(**own)
    except ValueError as error:  # Names fields; the user knows flags, or keys of the recipe.
        line = rename_settings(str(error), lambda name: names.get(prefix + name))
        raise ConfigError(line) from None


def _flag(key: str) -> str:
    return "--" + key.replace("_", "-")


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Layer:
    flat: Layer = {}
    for key, value in values.items():
        name = prefix + str(key).replace("-", "_")
        flat |= _flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return flat


def _check_known(words: Iterable[str], known: Iterable[str], label: str) -> None:
    for word in words:
        if word not in (names := list(known)):
            similar = [name for name in names if name.endswith("." + word.lstrip("-"))]
            similar += difflib.get_close_matches(word, names, n=1)
            hint = f"did you mean {similar[0]}?" if similar else "--help-all shows every flag"
            raise ConfigError(f"{label} {word}; {hint}")


def _read_flags(name: str, config_type: Any, fields: Fields, argv: Sequence[str]) -> Layer:
    """The words after each flag; prints the help and exits if `argv` asks for it."""
    show_all = "--help-all" in argv
    helping = show_all or "--help" in argv or "-h" in argv
    flags = ["--recipe", *(_flag(key) for key, field in fields.items() if not field.nested)]
    text = f"YAML file with sections {', '.join(SECTIONS)}; flags win over it"
    recipe = constructors.StructFieldSpec("recipe", _words(Path), None, helptext=text)
    registry = constructors.ConstructorRegistry()

    @registry.struct_rule
    def rule(info: constructors.StructTypeInfo) -> constructors.StructConstructorSpec | None:
        """Makes a dict of the words after each flag in place of a config."""
        own = {key: field for key, field in fields.items() if field.owner is info.type}
        specs = [recipe] if info.type is config_type else []
        for key, field in own.items():
            spec = field.spec
            if field.nested:
                specs.append(dataclasses.replace(spec, helptext=spec.type.__doc__))
            elif not helping:
                specs.append(dataclasses.replace(spec, type=_words(spec.type), default=None))
            elif show_all or field.required or key in config_type.common_flags:
                text = " ".join((spec.helptext() or "").split())
                specs.append(dataclasses.replace(spec, type=_words(spec.type), helptext=text))
        required = {field.spec.name for field in own.values() if field.required}
        specs.sort(key=lambda spec: spec.name not in required)
        return constructors.StructConstructorSpec(dict, tuple(specs)) if own else None

    words = [word.partition("=")[0].replace("_", "-") for word in argv]
    for key, field in fields.items():  # Of a single value the last one counts; of several, none may be lost.
        if words.count(_flag(key)) > 1 and unwrap(field.spec.type)[1]:
            raise ConfigError(
                f"{_flag(key)} is given {words.count(_flag(key))} times; give it once, with all its values"
            )
    if helping:
        os.environ["COLUMNS"] = str(min(shutil.get_terminal_size((100, 24)).columns, 100))
    more = "" if show_all else f"\n--help-all shows all {len(flags)} flags."
    values, unknown = tyro.cli(
        config_type,
        prog=f"jobs/{name}.py",
        description=f"{config_type.__doc__}\n\nExample: {config_type.example}{more}",
        args=["--help"] if helping else argv,
        return_unknown_args=True,
        registry=registry,
    )
    _check_known([word.partition("=")[0] for word in unknown[:1]], flags, "unknown flag")
    return {key: value for key, value in _flatten(values).items() if value is not None}


def _words(hint: Any) -> Any:
    """The type of a flag that takes any words; the help describes it as one of type `hint`."""
    kind, repeated, markers = unwrap(hint)
    none = [marker.word for marker in markers if isinstance(marker, NoneWord)]
    metavar = "|".join([*(get_args(kind) or (kind.__name__.upper(),)), *none])

    def shown(default: Any) -> list[str]:
        if default is None:
            return none or ["none"]
        items = map(str, default if repeated else [default])
        return [item.lower() if kind is bool else item for item in items] or ["none"]

    spec = constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar=f"{metavar} ..." if repeated else metavar,
        instance_from_str=list,
        is_instance=lambda _: True,
        str_from_instance=shown,
    )
    return Annotated[Any, spec]


class _TextLoader(yaml.BaseLoader):
    """YAML whose scalars are text as written, and whose keys stand only once; tags are ignored, so no code can run."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [str(key.value).replace("-", "_") for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                line = node.start_mark.line + 1
                raise yaml.YAMLError(f"{key} stands twice in the mapping from line {line} on")
        return super().construct_mapping(node, deep)


def _read_recipe(path: Path, name: str, fields: Fields) -> Layer:
    """The section of job `name`; of the pipeline, all sections."""
    try:
        recipe = yaml.load(path.read_text(), _TextLoader)
        recipe = {} if recipe is None or recipe in EMPTY else recipe
    except FileNotFoundError:
        raise ConfigError(f"--recipe {path}: no such file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    sections = recipe.values() if isinstance(recipe, dict) else [recipe]
    if not all(isinstance(section, dict) or section in EMPTY for section in sections):
        raise ConfigError(f"{path}: must hold sections ({', '.join(SECTIONS)}) of keys")
    _check_known([key.replace("-", "_") for key in recipe], SECTIONS, f"{path}: unknown section")
    layer = _flatten(recipe)
    keys = [key for key in fields if name != "pipeline" or "." in key]
    if name != "pipeline":
        own = [key for key in layer if key.startswith(f"{name}.")]
        layer = {key.removeprefix(f"{name}."): layer[key] for key in own}
    groups = {key for key, field in fields.items() if field.nested}
    layer = {k: value for k, value in layer.items() if not (k in groups and value in EMPTY)}
    _check_known(layer, [key for key in keys if key not in groups], f"{path}: unknown key")
    for key in layer:
        if layer[key] in EMPTY:
            raise ConfigError(f"{path}: {key} has no value; give one, or leave the key out")
    return layer
