"""The repository's Python files, parsed once for all house rules."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "trapline"

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Source:
    """One file: where it is from the repository's root, and what stands in it."""

    path: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.path)

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()

    @property
    def is_face(self) -> bool:
        return self.path.endswith("__init__.py")

    @property
    def module(self) -> str:
        """`kvm.vcpu` for src/trapline/kvm/vcpu.py, `kvm` for its face, `` for the package's."""
        parts = Path(self.path).with_suffix("").parts[2:]
        return ".".join(part for part in parts if part != "__init__")

    def functions(self) -> Iterator[tuple[str, Function]]:
        """Every function with its qualified name, methods and nested ones included."""
        yield from _functions(self.tree, "")


def _functions(node: ast.AST, prefix: str) -> Iterator[tuple[str, Function]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function):
            yield prefix + child.name, child
        named = isinstance(child, Function | ast.ClassDef)
        yield from _functions(child, f"{prefix}{child.name}." if named else prefix)


@cache
def sources(*folders: str) -> tuple[Source, ...]:
    """The Python files under these folders of the repository."""
    return tuple(
        Source(path.relative_to(ROOT).as_posix(), path.read_text())
        for folder in folders
        for path in sorted((ROOT / folder).rglob("*.py"))
    )


def package() -> tuple[Source, ...]:
    return sources("src/trapline")


def everything() -> tuple[Source, ...]:
    return sources("src/trapline", "tests", "benchmarks", "scripts")
