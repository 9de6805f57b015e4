"""What can be said of the benchmarks without running them."""

import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_no_script_hides_a_package() -> None:
    """A script that is run by its path finds its neighbours before packages: none may be called as one of them is."""
    names = {path.stem for path in BENCHMARKS.glob("*.py")}
    assert names
    assert names.isdisjoint({*sys.stdlib_module_names, "exporters", "ganserve", "tests", "training"})
