"""The file that `noise=PATH` names: a YAML mapping of perturbation arguments."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lm_eval_embednoise.checks import suggest

if TYPE_CHECKING:
    from collections.abc import Mapping


class _Strict(yaml.SafeLoader):
    """A loader that refuses a key written twice, where YAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.YAMLError(f"{key.value!r} stands twice, line {key.start_mark.line + 1}")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def with_noise_file(
    path: Any, given: Mapping[str, Any], allowed: tuple[str, ...]
) -> dict[str, Any]:
    """The file's arguments joined with those given directly.

    Args:
        path: of the YAML file; relative to the working folder.
        given: arguments from elsewhere.
        allowed: names of all perturbation arguments.

    Raises:
        ValueError: for a file that can't be read or isn't a mapping, an unknown name, or an
            argument that both give with different values.
    """
    arguments = _read(path)
    for name, value in arguments.items():
        if name not in allowed:
            raise ValueError(
                f"noise={path}: unknown argument {name!r}; {suggest(str(name), allowed)}"
                f"allowed: {', '.join(allowed)}"
            )
        if name in given and given[name] != value:
            raise ValueError(
                f"noise={path}: the file gives {name}={value!r}, which contradicts "
                f"{name}={given[name]!r} given directly; give it once"
            )
    return {**arguments, **given}


def _read(path: Any) -> dict[Any, Any]:
    if not isinstance(path, (str, Path)):
        raise ValueError(f"noise={path!r} is not the path of a YAML file")
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_Strict)
    except OSError as error:
        raise ValueError(f"noise={path}: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"noise={path} is not YAML: {reason}") from None
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise ValueError(f"noise={path} must hold a mapping of arguments to values, not a {kind}")
    return content
