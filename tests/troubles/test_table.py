"""The table of troubles, README.md, made of the `ROWS` beside the tests that show that each row holds.

    python tests/troubles/test_table.py

writes it anew.
"""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
TABLE = HERE / "README.md"
MARK = re.compile(r"mark\.trouble\(\"([^\"]+)\"\)")
NUMBERED = {f"1.{n}" for n in range(1, 18)} | {f"2.{n}" for n in range(1, 15)}
HEAD = """# Troubles

What other people's data, machines and habits brought, and what is right. 1: answers that were wrong without a
word; 2: crashes; 4: smaller things; 5: definitions. Each row is held by the tests named with it.

| row | given | right | tests |
|---|---|---|---|
"""


def rows() -> dict[str, tuple[str, str]]:
    """Row → what is given, what is right; of every file here."""
    found: dict[str, tuple[str, str]] = {}
    for path in sorted(HERE.glob("test_*.py")):
        for node in ast.parse(path.read_text()).body:
            match node:
                case ast.Assign(targets=[ast.Name("ROWS")], value=value):
                    pass
                case ast.AnnAssign(target=ast.Name("ROWS"), value=ast.Dict() as value):
                    pass
                case _:
                    continue
            told = ast.literal_eval(value)
            assert not found.keys() & told.keys(), f"{path.name} has a row of another file"
            found |= told
    return found


def shown() -> dict[str, set[str]]:
    """Row → the files with tests of it."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in sorted(HERE.parent.rglob("test_*.py")):
        for row in MARK.findall(path.read_text()):
            found[row].add(path.relative_to(HERE.parent).as_posix())
    return found


def table() -> str:
    """The page."""
    tests = shown()

    def lines() -> Iterator[str]:
        for row, (given, right) in sorted(rows().items(), key=_order):
            yield f"| {row} | {given} | {right} | {', '.join(sorted(tests[row]))} |\n"

    return HEAD + "".join(lines())


def _order(item: tuple[str, tuple[str, str]]) -> tuple[float, ...] | tuple[float, int, str]:
    part, _, rest = re.split(r"([. ])", item[0], maxsplit=1)
    return (float(part), int(rest), "") if rest.isdigit() else (float(part), 0, rest)


def test_every_row_is_shown_by_a_test_and_stands_in_the_table() -> None:
    """And no test is of a row that nobody described."""
    assert rows().keys() == shown().keys()
    assert rows().keys() >= NUMBERED
    assert TABLE.read_text() == table(), "run: python tests/troubles/test_table.py"


if __name__ == "__main__":
    TABLE.write_text(table())
