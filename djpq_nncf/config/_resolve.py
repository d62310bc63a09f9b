# SPDX-License-Identifier: Apache-2.0
"""From plain JSON values to a complete configuration, or to the list of everything that is wrong."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from djpq_nncf.config._defaults import with_defaults, without
from djpq_nncf.config._describe import describe
from djpq_nncf.config._input_rules import input_rules
from djpq_nncf.config._problems import Path, Problem, show_value, unknown_name
from djpq_nncf.config._schemas import (
    algorithm_rules,
    algorithm_schema,
    algorithms_with_schema,
    top_level_schema,
)
from djpq_nncf.config._validation import schema_problems


@dataclass(frozen=True)
class Resolved:
    """A configuration with every default filled in and lists where a single object may stand."""

    settings: dict[str, Any]
    problems: tuple[Problem, ...]


def resolve(document: Any) -> Resolved:
    """Check ``document`` against all schemas and rules, and fill in the defaults."""
    problems = schema_problems(document, top_level_schema())
    if not isinstance(document, dict):
        return Resolved({}, tuple(problems))
    valid = without(document, (problem.path for problem in problems))
    target_device = with_defaults(valid, top_level_schema())["target_device"]
    algorithms, algorithm_problems = _resolve_algorithms(document.get("compression"), target_device)
    problems += algorithm_problems
    valid = without(document, (problem.path for problem in problems))
    is_single = isinstance(valid.get("input_info"), dict)
    if is_single:
        valid["input_info"] = [valid["input_info"]]
    settings = {**with_defaults(valid, top_level_schema()), "compression": algorithms}
    inputs = [entry for entry in settings["input_info"] or () if "sample_size" in entry]
    problems += input_rules(
        inputs, [("input_info",) if is_single else ("input_info", index) for index in range(len(inputs))]
    )
    return Resolved(settings, tuple(problems))


def _resolve_algorithms(compression: Any, target_device: str) -> tuple[list[dict[str, Any]], list[Problem]]:
    settings: list[dict[str, Any]] = []
    problems: list[Problem] = []
    seen: set[str] = set()
    for path, given in _algorithm_objects(compression):
        name = given.get("algorithm")
        problem = _name_problem(name, seen)
        if problem is not None:
            problems.append(Problem((*path, "algorithm"), problem))
            continue
        seen.add(given["algorithm"])
        complete, found = _resolve_algorithm(given, path, target_device)
        settings.append(complete)
        problems += found
    return settings, problems


def _algorithm_objects(compression: Any) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The entries that are objects; the top-level schema has complained about the others."""
    if isinstance(compression, dict):
        yield ("compression",), compression
    elif isinstance(compression, list):
        for index, entry in enumerate(compression):
            if isinstance(entry, dict):
                yield ("compression", index), entry


def _name_problem(name: Any, seen: set[str]) -> str | None:
    known = algorithms_with_schema()
    if name is None:
        return f"missing, and it has no default; give {describe({'enum': list(known)})}"
    if not isinstance(name, str):
        return f"{show_value(name)} is not allowed; give {describe({'enum': list(known)})}"
    if name not in known:
        return f"{unknown_name('algorithm', name, known)}{_of_nncf_2(name)}"
    if name in seen:
        return f"{show_value(name)} stands in the list twice; remove one of the two"
    return None


def _of_nncf_2(name: str) -> str:
    """What to write instead of an algorithm of NNCF 2.x; nothing for other names."""
    if name in ("filter_pruning", "movement_sparsity"):
        return '. Here "djpq" prunes; with "quantization": {"enabled": false} it does nothing else'
    if name in ("quantization", "experimental_quantization"):
        return '. Here "djpq" quantizes; with "pruning": {"enabled": false} it does nothing else'
    if name in ("magnitude_sparsity", "rb_sparsity", "const_sparsity", "binarization"):
        return '. Single weights are not removed here; "djpq" removes whole channels and learns bit-widths'
    return ""


def _resolve_algorithm(given: dict[str, Any], at: Path, target_device: str) -> tuple[dict[str, Any], list[Problem]]:
    schema, rules = algorithm_schema(given["algorithm"]), algorithm_rules(given["algorithm"])
    problems = schema_problems(given, schema, at)
    # What is wrong is replaced by its default, so that the rules can look at the rest all the same.
    valid = without(given, (problem.path[len(at) :] for problem in problems))
    settings: dict[str, Any] = with_defaults(valid, schema)
    if rules is not None:
        problems += [problem.below(at) for problem in rules(settings, valid, target_device)]
    return settings, problems
