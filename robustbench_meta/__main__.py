"""`python -m robustbench_meta`: the command `bench`."""

from robustbench_meta.cli import main

main()
