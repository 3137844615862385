"""Measures the Python code of the package, in the working tree and optionally in an earlier commit.

With a commit both are printed; `--fewer` then says by how many percent the lines have to fall, without longer
functions, more conditional expressions per hundred lines or fewer docstring lines per function.
"""

import argparse
import ast
import io
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

ROOT = Path(__file__).parents[1]
LONGEST_MODULE, LONGEST_FUNCTION = 400, 40
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Size:
    """Size of a package's Python code.

    Lines count as in `wc -l`. A function's length is that of its code and comments, from `def` on, without
    its docstring.
    """

    modules: int
    lines: int
    functions: int
    average_function: float
    longest_function: int
    long_modules: int
    conditionals_per_100_lines: float
    docstring_lines_per_function: float


def working_tree(folder: str, root: Path = ROOT) -> dict[str, str]:
    """Return the text of each Python file, committed or not, by its path."""
    paths = sorted((root / folder).rglob("*.py"))
    return {str(path.relative_to(root)): path.read_text("utf-8") for path in paths}


def commit(revision: str, folder: str, root: Path = ROOT) -> dict[str, str]:
    """Return the text of each Python file of a git revision by its path."""
    command = ["git", "archive", "--format=tar", revision, "--", folder]
    archive = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, check=True).stdout
    texts = {}
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for member in tar:
            if member.name.endswith(".py") and (file := tar.extractfile(member)):
                texts[member.name] = file.read().decode()
    return texts


def functions(tree: ast.AST) -> list[Function]:
    """Return every function and method, nested ones too."""
    return [node for node in ast.walk(tree) if isinstance(node, Function)]


def docstring_lines(function: Function) -> int:
    """Count the lines of a function's docstring."""
    first = function.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
        return _lines(first)
    return 0


def code_lines(function: Function) -> int:
    """Count the lines of a function without its docstring."""
    return _lines(function) - docstring_lines(function)


def measure(texts: Mapping[str, str]) -> Size:
    """Measure files given by path and text."""
    trees = [ast.parse(text) for text in texts.values()]
    found = [function for tree in trees for function in functions(tree)]
    lengths = [code_lines(function) for function in found]
    lines = [text.count("\n") for text in texts.values()]
    conditionals = sum(isinstance(node, ast.IfExp) for tree in trees for node in ast.walk(tree))
    return Size(
        modules=len(texts),
        lines=sum(lines),
        functions=len(found),
        average_function=_ratio(sum(lengths), len(found)),
        longest_function=max(lengths, default=0),
        long_modules=sum(n > LONGEST_MODULE for n in lines),
        conditionals_per_100_lines=_ratio(100 * conditionals, sum(lines)),
        docstring_lines_per_function=_ratio(sum(map(docstring_lines, found)), len(found)),
    )


def faults(before: Size, after: Size, fewer_percent: float) -> list[str]:
    """Return what keeps the code from being smaller by a share and as readable as before."""
    rules = {
        f"lines fell by less than {fewer_percent:g} %": after.lines
        > before.lines * (1 - fewer_percent / 100),
        "functions grew on average": after.average_function > before.average_function,
        "conditional expressions grew": after.conditionals_per_100_lines > before.conditionals_per_100_lines,
        "docstrings shrank": after.docstring_lines_per_function < before.docstring_lines_per_function,
        f"a function has more than {LONGEST_FUNCTION} lines": after.longest_function > LONGEST_FUNCTION,
        f"a module has more than {LONGEST_MODULE} lines": after.long_modules > 0,
    }
    return [rule for rule, is_broken in rules.items() if is_broken]


def _lines(node: ast.stmt) -> int:
    return (node.end_lineno or 0) - node.lineno + 1


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _table(columns: Mapping[str, Size]) -> Iterable[str]:
    yield f"{'':30}" + "".join(f"{name:>14}" for name in columns)
    for field in fields(Size):
        values = [getattr(size, field.name) for size in columns.values()]
        shown = [f"{value:.2f}" if isinstance(value, float) else f"{value:,}" for value in values]
        yield f"{field.name.replace('_', ' '):30}" + "".join(f"{text:>14}" for text in shown)


def main() -> None:
    """Print the figures; end with status 1 if `--fewer` does not hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("base", nargs="?", help="commit to compare with")
    parser.add_argument("--folder", default="service", help="where the package lies")
    parser.add_argument("--fewer", type=float, metavar="PERCENT", help="by how much the lines have to fall")
    arguments = parser.parse_args()
    if arguments.fewer is not None and not arguments.base:
        parser.error("--fewer needs a commit to compare with")
    after = measure(working_tree(arguments.folder))
    if not arguments.base:
        print(*_table({"working tree": after}), sep="\n")
        return
    before = measure(commit(arguments.base, arguments.folder))
    print(*_table({arguments.base[:12]: before, "working tree": after}), sep="\n")
    if before.lines:
        print(f"lines: {100 * (after.lines / before.lines - 1):+.1f} %")
    found = [] if arguments.fewer is None else faults(before, after, arguments.fewer)
    print(*found, sep="\n", end="\n" if found else "")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
