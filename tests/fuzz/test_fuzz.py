"""Whatever the OpenAPI document allows or forbids is answered as it says."""

from pathlib import Path

import pytest

from tests.fuzz.campaign import campaign
from tests.servers import Server


def test_no_case_of_a_sample_is_answered_otherwise_than_the_document_says(
    server: Server, tmp_path: Path
) -> None:
    outcome = campaign(server, "--phases", "examples,fuzzing", "--max-examples", "5", folder=tmp_path)
    assert outcome.passed, outcome.report
    assert outcome.cases >= 80


@pytest.mark.fuzz
def test_no_case_of_ten_thousand_is_answered_otherwise_than_the_document_says(
    server: Server, tmp_path: Path
) -> None:
    cases, seed = 0, 0
    while cases < 10_000:
        seed += 1
        outcome = campaign(server, "--max-examples", "220", seed=seed, folder=tmp_path)
        assert outcome.passed, outcome.report
        cases += outcome.cases
        print(f"seed {seed}: {outcome.cases} cases, no failure")
