"""The data report in a terminal."""

import pytest

from flows.commands.case_table import SHOWN, case_table
from liverseg_core.cases.data_report import CaseRow


def test_of_very_many_cases_the_odd_ones_are_shown(capfd: pytest.CaptureFixture[str]) -> None:
    plain = [CaseRow(f"c{n}", True) for n in range(SHOWN)]
    assert case_table(plain).row_count == SHOWN
    odd = [CaseRow("odd", True, flags=("no-liver",)), CaseRow("bad", None, problem="LS311: damaged")]
    assert case_table([*plain, *odd]).row_count == 2
    assert "2 of 2 odd cases" in capfd.readouterr().err
    many = [CaseRow(f"o{n}", True, flags=("no-liver",)) for n in range(2 * SHOWN)]
    assert case_table(many).row_count == SHOWN
