"""How large the code is, and how many floors of imports it has; works on any checkout of the project.

    python -m benchmarks.code_structure [--root DIR]

A *floor* is the longest chain of imports below a file; an *arrow* is an import of one file by another of its package.
The same is counted between folders; a file that lies in no folder of the package counts as one.
The files that one image crosses are those that the stages from a folder to a grid import, at whatever depth.
"""

import argparse
import ast
import functools
import json
import statistics
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("glo_core", "pipelines", "jobs")
STAGES = ("jobs.preprocess", "jobs.train", "jobs.fit_prior", "jobs.render")
Graph = dict[str, set[str]]
"""By module, the modules of the project that it imports"""


def modules(root: Path, package: str) -> dict[str, Path]:
    """Files of `package` that hold more than a docstring, by module name."""
    files = {}
    for path in sorted((root / package).rglob("*.py")):
        name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        if len(ast.parse(path.read_text()).body) > 1:
            files[name] = path
    return files


def imports(path: Path, names: set[str]) -> set[str]:
    """The modules of `names` that a file imports, in functions too."""
    targets = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            targets |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            targets |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return targets & names


def without_circles(graph: Graph) -> Graph:
    """`graph` without the imports that lead back to a file above them: such a one stands in a function."""
    straight: Graph = {name: set() for name in graph}
    is_done: dict[str, bool] = {}

    def visit(name: str) -> None:
        is_done[name] = False
        for other in sorted(graph[name] - {name}):
            if is_done.get(other, True):
                straight[name].add(other)
            if other not in is_done:
                visit(other)
        is_done[name] = True

    for name in sorted(graph):
        if name not in is_done:
            visit(name)
    return straight


def floors(graph: Graph) -> int:
    """Files in the longest chain of imports."""
    graph = without_circles(graph)

    @functools.cache
    def depth(name: str) -> int:
        return 1 + max((depth(other) for other in graph[name]), default=0)

    return max((depth(name) for name in graph), default=0)


def of_folders(graph: Graph, package: str) -> Graph:
    """`graph` with each file of a folder below `package` replaced by the folder."""

    def folder(name: str) -> str:
        return ".".join(name.split(".")[:2])

    merged: Graph = {folder(name): set() for name in graph}
    for name, others in graph.items():
        merged[folder(name)] |= {folder(other) for other in others if other != package} - {folder(name)}
    return merged


def reached(graph: Graph, starts: Iterator[str]) -> set[str]:
    """Every module that `starts` import, at whatever depth, and themselves."""
    pending, seen = list(starts), set[str]()
    while pending:
        name = pending.pop()
        if name not in seen:
            seen.add(name)
            pending += graph[name]
    return seen


def function_lines(path: Path) -> list[int]:
    """Lines of each function of a file."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kinds)]
    return [(node.end_lineno or node.lineno) - node.lineno + 1 for node in nodes]


def percentile(values: list[int], share: float) -> int:
    """The value below which `share` of `values` lie."""
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]


def main() -> None:
    """Print a row for each package, and the files that one image crosses."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[1], help="a checkout (default: this one)")
    root = parser.parse_args().root
    everything = {name: path for package in PACKAGES for name, path in modules(root, package).items()}
    graph = {name: imports(path, set(everything)) - {name} for name, path in everything.items()}
    head = "package|files|folders|lines|file p50 / p95|function p50 / p95|floors|arrows|folder floors|folder arrows"
    print("| " + " | ".join(head.split("|")) + " |")
    print("|" + "---|" * len(head.split("|")))
    for package in PACKAGES:
        files = modules(root, package)
        own = {name: {other for other in graph[name] if other in files} for name in files}
        own = {name: {other for other in others if other != package} for name, others in own.items() if name != package}
        folders = of_folders(own, package)
        lines = [len(path.read_text().splitlines()) for path in files.values()]
        functions = [size for path in files.values() for size in function_lines(path)]
        print(
            f"| {package} | {len(files)} | {len({path.parent for path in files.values()})} | {sum(lines)} | "
            f"{round(statistics.median(lines))} / {percentile(lines, 0.95)} | "
            f"{round(statistics.median(functions))} / {percentile(functions, 0.95)} | "
            f"{floors(own)} | {sum(map(len, own.values()))} | "
            f"{floors(folders)} | {sum(map(len, folders.values()))} |"
        )
    crossed = reached(graph, iter(STAGES)) - set(STAGES)
    print(f"files that one image crosses from a folder to a grid: {len(crossed)}")
    print(json.dumps({"files": len(everything), "files_that_an_image_crosses": len(crossed)}))


if __name__ == "__main__":
    main()
