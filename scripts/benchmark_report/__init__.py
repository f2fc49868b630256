"""Parts of ``bench_report.py``, and what the benchmarks write for it."""
