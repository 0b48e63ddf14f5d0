"""What `tools/benchmark.py` measures: tables of methods, sweeps of settings, speed."""
