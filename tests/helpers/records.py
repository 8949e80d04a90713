"""Records made by hand: all that leaderboards, comparisons and curves read of them."""

import hashlib

import numpy as np

from robustbench_meta.results.leaderboard import TIMINGS
from robustbench_meta.results.store import SCHEMA, Store, pack


def record(robust, *, clean=None, learner="maml", attack="pgd", eps=0.1, seed=0, code="v1", attack_code="v1", core="c",
           way=2, sweep=(), support="clean", query="adv", surrogate="none", norm="linf", digest="e" * 16,
           written="2026-01-01T00:00:00Z", flags=(), dataset="d", method="iterative", trained=None, checks="",
           surrogate_code="v1", probed=None, fingerprint="f"):  # fmt: skip
    """A record of `robust`, booleans [episodes, queries]; clean answers are all right unless given.

    `surrogate` is the label; `trained` its training's key (by default one of each seed), or `file DIGEST`;
    `probed` the accuracies of the checks' probes, by name.
    """
    robust = np.asarray(robust, bool)
    clean = np.ones_like(robust) if clean is None else np.asarray(clean, bool)
    training = {"learner": {"name": learner, "options": {}, "code": code}, "dataset": dataset, "way": way, "shot": 1}
    training |= {"query": 1, "meta_steps": 10, "tasks_per_step": 4, "seed": seed, "fingerprint": fingerprint}
    name, _, typed = attack.partition(":")
    plugin = {"name": name, "options": dict(each.partition("=")[::2] for each in typed.split(",") if each),
              "code": attack_code}  # fmt: skip
    model = {
        "learner": {"name": surrogate.split()[0], "options": {}, "code": surrogate_code},
        "backbone": {"name": "b", "options": {}, "code": "v1"},
        "trained": f"key {seed}" if trained is None else trained,
    }  # fmt: skip
    spec = {
        "training": training, "attack": {"plugin": plugin, "norm": norm, "eps": eps, "sweep": list(sweep)},
        "support": support, "query": query, "episodes": len(robust), "code": core, "checks": checks,
        "surrogate": None if surrogate == "none" else model,
    }  # fmt: skip
    labels = {
        "dataset": dataset, "backbone": "b", "learner": learner, "attack": attack, "eps": f"{eps:g}",
        "training_attack": "none", "training_eps": "0", "surrogate": surrogate,
        "warm_start": f"{sweep[-1]:g}" if sweep else "",
    }  # fmt: skip
    name = hashlib.sha256(repr((spec, surrogate, digest)).encode()).hexdigest()[:16]
    return {
        "schema": SCHEMA, "key": name, "training": hashlib.sha256(repr(training).encode()).hexdigest()[:16],
        "written": written, "norm_layer": "none", "inference": "inductive", "spec": spec, "labels": labels,
        "clean": pack(clean), "robust": pack(robust), "timings": dict.fromkeys(TIMINGS, 1.0), "precision": "float32",
        "flags": list(flags), "parameters": 1, "device": "cpu", "versions": {"robustbench_meta": "0"},
        "method": method, "episodes_digest": digest,
        "checks": None if probed is None else {"accuracies": probed},
    }  # fmt: skip


def clean_record(clean, **told):
    """A record of no attack."""
    return record(clean, clean=clean, attack="none", norm="none", eps=0.0, query="clean", method="random", **told)


def answers(mean, episodes=200, queries=25, seed=0):
    """Answers to the same episodes for every `mean`: some are hard and some easy, for whoever answers."""
    rng = np.random.default_rng([7, seed])
    hardness = rng.beta(3, 3, size=(episodes, 1)) - 0.5
    return rng.random((episodes, queries)) < np.clip(mean + 0.6 * hardness, 0, 1)


def stored(root, *records):
    """A results folder that holds them."""
    store = Store(root)
    for each in records:
        store.write_record(each)
    assert len(store.records()) == len(records), "two records with one key"
    return store
