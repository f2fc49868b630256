"""Writes what benchmarks measured into docs/benchmarks.md: tables, plots of throughput against latency, and the commands.

    python scripts/bench_engine.py ... --json docs/measurements/llama-3-8b.json
    python scripts/bench_serving.py ... --output docs/measurements/serving.json --hardware "NVIDIA H100 80GB HBM3, jax 0.11.2"
    python scripts/soak_engine.py ... --json docs/measurements/soak.json
    python scripts/bench_report.py

Files are told apart by what is in them; without names, all of docs/measurements are taken. Each kind has its section between the
lines ``<!-- bench_report: engine -->`` (``serving``, ``soak``) and ``<!-- bench_report: end -->``, which is replaced as a whole;
sections of kinds that no file tells of stay as they are. Nothing is measured here, and no number comes from anywhere else.
"""

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

from benchmark_report.markdown import with_section
from benchmark_report.plots import Panel, draw, engine_panels, serving_panels, slug
from benchmark_report.records import Record, read_records
from benchmark_report.sections import engine_section, grouped, serving_section, soak_section

DOCS = Path(__file__).parents[1] / "docs"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("files", nargs="*", type=Path, help="JSON of the benchmarks; default docs/measurements/*.json")
    options.add_argument("--into", type=Path, default=DOCS / "benchmarks.md", help="default docs/benchmarks.md")
    options.add_argument("--plots", type=Path, help="folder of the pictures; default plots beside the document")
    return options


def write_report(files: list[Path], document: Path, plots: Path) -> list[Path]:
    """Replace the document's sections; returns what was written.

    Raises:
        ValueError: a file that no benchmark wrote, or a section that the document does not mark.
    """
    records = read_records(files)
    of = {kind: [record for record in records if record.kind == kind] for kind in ("engine", "serving", "soak")}
    drawn = draw_plots(of["engine"], of["serving"], plots)

    def links(kind: str) -> list[str]:
        found = [(title, path) for title, path in drawn if path.name.startswith(kind)]
        return [f"![{title}]({path.relative_to(document.parent, walk_up=True).as_posix()})" for title, path in found]

    text = document.read_text(encoding="utf-8")
    for kind, section in (("engine", engine_section), ("serving", serving_section), ("soak", soak_section)):
        if of[kind]:
            text = with_section(text, kind, section(of[kind], links(kind)))
    document.write_text(text, encoding="utf-8")
    return [document, *(path for _, path in drawn)]


def draw_plots(engine: list[Record], serving: list[Record], folder: Path) -> list[tuple[str, Path]]:
    """A picture for each shape on each device, and for each server; their titles and files. None without matplotlib."""
    if find_spec("matplotlib") is None:
        print("no plots: matplotlib is missing (pip install 'jaxdeploy[plots]')", file=sys.stderr)
        return []
    pictures: list[tuple[str, str, list[Panel]]] = []
    shapes: dict[str, list[Record]] = {}
    for record in engine:
        shapes.setdefault(f"{record.data['options']['shape']}: {record.hardware}", []).append(record)
    pictures += [("engine", title, engine_panels(runs)) for title, runs in shapes.items()]
    pictures += [("serving", f"{model}: {where}", serving_panels(runs)) for (model, where), runs in grouped(serving)]
    return [
        (title, draw(panels, title, folder / f"{kind}-{slug(title)}.png")) for kind, title, panels in pictures if panels
    ]


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    options = parser().parse_args(arguments)
    files = options.files or sorted((DOCS / "measurements").glob("*.json"))
    try:
        if not files:
            raise ValueError("there is nothing to report; write some --json into docs/measurements, or name files")
        written = write_report(files, options.into, options.plots or options.into.parent / "plots")
    except (OSError, ValueError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    print("\n".join(map(str, written)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
