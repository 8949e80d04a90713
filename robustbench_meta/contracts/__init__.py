"""What a learner, an attack, a backbone, a data set and a tracker must offer, and what they are given.

Every plugin is a frozen pydantic model: its fields are its options, settable on the command line as
`name:option=value,…`; its class variables are what it declares about itself.
"""

from robustbench_meta.contracts.attack import Attack, Method, Random, Victim, margin
from robustbench_meta.contracts.backbone import Backbone, with_head
from robustbench_meta.contracts.dataset import Dataset
from robustbench_meta.contracts.defence import AdversarialDefence, Defence
from robustbench_meta.contracts.learner import AnyLearner, BaseTraining, Learner, Model, Operations, Toward, Update
from robustbench_meta.contracts.plugin import File, LossName, Plugin, Setting
from robustbench_meta.contracts.state import State, Weights
from robustbench_meta.contracts.tracker import Tracker

__all__ = [
    "AdversarialDefence", "AnyLearner", "Attack", "Backbone", "BaseTraining", "Dataset", "Defence", "File", "Learner",
    "LossName", "Method", "Model", "Operations", "Plugin", "Random", "Setting", "State", "Toward", "Tracker", "Update",
    "Victim", "Weights", "margin", "with_head",
]  # fmt: skip
