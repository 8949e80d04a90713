"""How fast the suite is: against other libraries, against the machine's limits, and as the work grows.

`make bench`, or `python -m benchmarks --help`.
"""
