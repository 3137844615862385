"""Every point is shown by a test."""

import ast
from pathlib import Path

from tests.v2.points import POINTS


def test_each_of_the_thirty_points_has_a_test() -> None:
    shown = set()
    for path in Path(__file__).parent.glob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                calls = [d for d in node.decorator_list if isinstance(d, ast.Call)]
                points = [call for call in calls if getattr(call.func, "id", "") == "point"]
                shown |= {number.value for call in points for number in call.args}  # type: ignore[attr-defined]
    assert shown == set(POINTS) == set(range(1, 31))
