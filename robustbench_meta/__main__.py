"""`python -m robustbench_meta`: the command `bench`."""

import sys
from pathlib import Path

if not sys.flags.safe_path and Path(sys.path[0]).resolve() != Path(__file__).resolve().parent.parent:
    del sys.path[0]  # the folder where one is: a torch.py or select.py there would be imported; `bench` has it neither

from robustbench_meta.cli import main

main()
