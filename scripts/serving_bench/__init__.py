"""What ``bench_serving.py`` is made of; needs nothing but Python."""
