from robustbench_meta.api import evaluate as evaluate
from robustbench_meta.api import run as run
from robustbench_meta.errors import BenchError as BenchError
from robustbench_meta.hookspecs import hookimpl as hookimpl
from robustbench_meta.reporting.results import Results as Results
from robustbench_meta.reporting.results import load_results as load_results
from robustbench_meta.zoo import load_model as load_model

__version__: str
