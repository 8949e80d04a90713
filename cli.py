"""Run from a checkout: `python cli.py run …` is the same as the installed `bench run …`."""

from robustbench_meta.cli import main

if __name__ == "__main__":
    main()
