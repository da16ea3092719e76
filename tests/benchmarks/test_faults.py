"""Where the results of `scripts/bench faults` go."""

import pytest

from benchmarks import faults


@pytest.mark.parametrize(
    ("kills", "quick", "resume", "directory"),
    [
        (faults.USUAL, False, False, faults.RESULTS),
        (6, False, False, faults.QUICK_RESULTS),
        (6, True, False, faults.QUICK_RESULTS),
        (faults.USUAL, True, False, faults.QUICK_RESULTS),
        (100, False, True, faults.RESULTS),
    ],
)
def test_few_kills_never_go_over_the_results_that_readme_shows(kills, quick, resume, directory):
    assert faults.directory_of(kills, quick=quick, resume=resume) == directory
