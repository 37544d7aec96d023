"""The parts of `benchmarks/serving.py`: what is asked, how it is timed, and what it is held against."""
