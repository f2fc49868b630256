"""Progress of loading and compiling."""

import io

from rich.console import Console

from jaxdeploy.cli.progress_bars import ProgressBars


def test_one_bar_per_phase_with_bytes_or_counts():
    shown = io.StringIO()
    with ProgressBars(Console(file=shown, width=100)) as progress:
        progress("load", 2**19, 2**20)
        progress("load", 2**20, 2**20)
        progress("compile", 3, 12)
    loading, compiling = shown.getvalue().splitlines()
    assert loading.startswith("Loading weights")
    assert "1.00 MiB of 1.00 MiB" in loading
    assert compiling.startswith("Compiling")
    assert "3 of 12" in compiling


def test_nothing_to_do_shows_nothing():
    shown = io.StringIO()
    with ProgressBars(Console(file=shown, width=100)):
        pass
    assert shown.getvalue().strip() == ""
