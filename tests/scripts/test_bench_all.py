"""All benchmarks by one command: what ran is not run again, what is cut off or fails is said and stays to be done."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import bench_all
from bench_all import RUNS, Run, main

SCRIPTS = Path(bench_all.__file__).parent
QUICK = Run("quick", "-c \"import sys; print('here'); open(sys.argv[1], 'w').write('{{}}')\" {json}", 20)
BROKEN = Run("broken", '-c "print(1 / 0)"', 20)
ENDLESS = Run("endless", "-c \"import threading; print('begun', flush=True); threading.Event().wait()\"", 20)


def test_results_logs_and_what_is_missing(tmp_path, capsys):
    assert main(["--out", str(tmp_path)], (BROKEN, QUICK)) == 1
    assert [line.split(" after")[0] for line in capsys.readouterr().out.splitlines()] == [
        "broken: failed (1)",
        "quick: done",
    ]
    assert (tmp_path / "quick.json").read_text() == "{}"
    assert "here" in (tmp_path / "quick.log").read_text()
    assert "ZeroDivisionError" in (tmp_path / "broken.log").read_text()


def test_a_second_call_goes_on_where_the_first_stopped(tmp_path, capsys):
    assert main(["--out", str(tmp_path)], (QUICK,)) == 0
    (tmp_path / "quick.json").write_text("kept")
    assert main(["--out", str(tmp_path)], (QUICK,)) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "quick: has a result"
    assert (tmp_path / "quick.json").read_text() == "kept"


def test_what_takes_too_long_is_cut_off_and_keeps_its_log(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench_all, "LEAST_SECONDS", 0)
    assert main(["--out", str(tmp_path), "--seconds", "2"], (ENDLESS, QUICK)) == 1
    assert capsys.readouterr().out.splitlines()[0].startswith("endless: cut off after 2 s")
    assert "begun" in (tmp_path / "endless.log").read_text()
    assert not (tmp_path / "endless.done").exists()


def test_without_time_nothing_is_begun(tmp_path, capsys):
    assert main(["--out", str(tmp_path), "--seconds", "1"], (QUICK,)) == 1
    assert capsys.readouterr().out == "quick: no time left\n"


def test_names_choose_and_order(tmp_path, capsys):
    assert main(["--list", "--only", "quick,broken"], (BROKEN, QUICK)) == 0
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == ["quick", "broken"]
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path), "--only", "slow"], (BROKEN, QUICK))
    assert "--only slow must be among broken, quick" in capsys.readouterr().err


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_every_command_names_a_script_that_is_there(run, tmp_path):
    first, *rest = run.arguments(tmp_path)[1:]
    assert first == "-m" or (SCRIPTS.parent / first).is_file()
    assert not any("{" in word for word in rest)
