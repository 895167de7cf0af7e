"""What was evaluated, kept in optuna's storage: a stopped run goes on from it, and several tuners share it.

A trial begins as a claim: a running trial with its config. Of several claims to a config the first one, by trial
number, holds, so that no config is evaluated twice. A claim whose tuner has died is given up: at once if it ran on
this machine, otherwise when optuna's heartbeat stops, or in a storage without heartbeats after a while.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import threading
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from tunegen.configs import TunedBucket
from tunegen.ops import Config, Problem, config_key, get_family
from tunegen.search.storage import HEARTBEAT_SECONDS
from tunegen.targets import Target

# A claim is of a batch that takes minutes at most.
ABANDONED_SECONDS = 1800.0
# What optuna's tables hold.
LONGEST_NAME = 500
CONDEMNED = "condemned "


@dataclass(frozen=True)
class Winners:
    """What was chosen among the configs of a problem.

    Attributes:
        buckets: By token count, ascending.
        held_out_regret: See `tunegen.configs.TunedEntry`.
    """

    buckets: list[TunedBucket]
    held_out_regret: dict[str, float]


@dataclass(frozen=True)
class Outcome:
    """What became of one config.

    Attributes:
        config: The config.
        times: Microseconds a call by token count; empty if it failed.
        failure: Why it failed; empty if it did not.
        details: What else is known: limiter, resources.
    """

    config: Config
    times: dict[int, float]
    failure: str
    details: dict[str, Any]


class Heart:
    """Tells the storage that the tuner is alive, for all trials that it has claimed; a context manager."""

    def __init__(self, storage: optuna.storages.BaseStorage) -> None:
        # Storages that know no heartbeat have no such method.
        self._beat = getattr(storage, "record_heartbeat", None)
        self._trials: set[int] = set()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Heart:
        if self._beat is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._beat is not None:
            self._thread.join()

    def add(self, trial: int) -> None:
        """Begins to beat for a trial."""
        if self._beat is not None:
            self._beat(trial)
        with self._lock:
            self._trials.add(trial)

    def remove(self, trial: int) -> None:
        """Ends it."""
        with self._lock:
            self._trials.discard(trial)

    def _run(self) -> None:
        assert self._beat is not None
        while not self._stop.wait(HEARTBEAT_SECONDS):
            with self._lock:
                trials = sorted(self._trials)
            for trial in trials:
                try:
                    self._beat(trial)
                except optuna.exceptions.StorageInternalError:
                    break  # a server that cannot be reached now is tried again; the tuner itself will meet it too


@functools.cache
def _owner() -> str:
    """This process: the machine's boot, its namespace of process ids, its id and when it began."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    namespace = Path("/proc/self/ns/pid").readlink()
    return f"{boot} {namespace} {os.getpid()} {_began(os.getpid())}"


def _began(pid: int) -> str:
    """When a process of this machine began, in the kernel's ticks; empty if there is none, or it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def _dead(owner: str) -> bool:
    """True if the process was one of this machine and is no more; others cannot be told."""
    boot, namespace, pid, began = owner.split()
    mine = _owner().split()
    return [boot, namespace] == mine[:2] and _began(int(pid)) != began


class Record:
    """The persistent study of one problem.

    Args:
        storage: Where it is kept.
        heart: Beats for what is claimed.
        problem: What is tuned.
        target: For which GPU.
        tokens: Token counts evaluated.
        circumstances: Whatever else a time depends on (device, template, versions, evidence): another value
            is another study.
        num_objectives: Number of token groups.
    """

    def __init__(
        self,
        storage: optuna.storages.BaseStorage,
        heart: Heart,
        problem: Problem,
        target: Target,
        tokens: list[int],
        circumstances: list[str],
        num_objectives: int,
    ) -> None:
        name = " | ".join([str(problem), target.name, *circumstances, "tokens " + ",".join(map(str, tokens))])
        if len(name) > LONGEST_NAME:
            name = f"{name[: LONGEST_NAME - 17]} {hashlib.sha256(name.encode()).hexdigest()[:16]}"
        self._storage, self._heart = storage, heart
        self._study = optuna.create_study(
            storage=storage, study_name=name, directions=["minimize"] * num_objectives, load_if_exists=True
        )
        self._id = storage.get_study_id_from_name(name)
        # Trials of this process that are under way, by config.
        self._claims: dict[str, int] = {}
        about = {"op": problem.op, "shape": problem.sizes, "variant": problem.rounding, "target": target.name}
        if "about" not in self._study.user_attrs:
            self._study.set_user_attr("about", {**about, "circumstances": circumstances})
            if num_objectives == len(tokens):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                    self._study.set_metric_names([f"time over default, {count} tokens" for count in tokens])
        self._distributions = {
            knob.name: optuna.distributions.CategoricalDistribution(knob.choices)
            for knob in get_family(problem.op).knobs(problem, target)
        }

    def load(self) -> list[Outcome]:
        """Everything recorded so far, by anyone, in the order of the claims."""
        return self.look()[0]

    def others(self) -> set[str]:
        """Configs that other tuners, all of them alive, have claimed and not finished."""
        return self.look()[1]

    def look(self) -> tuple[list[Outcome], set[str]]:
        """Both at one moment: what is in neither is nobody's."""
        trials, foreign = self._trials()
        return _with_condemned(finished(trials), self._study.user_attrs), self._alive(foreign)

    def _trials(self) -> tuple[list[FrozenTrial], list[FrozenTrial]]:
        """All, and those under way elsewhere."""
        # Asked first: what a worker's thread finishes in the meantime is still known as this process's.
        mine = set(self._claims.values())
        trials = self._storage.get_all_trials(self._id, deepcopy=False)
        return trials, [t for t in trials if t.state == TrialState.RUNNING and t._trial_id not in mine]

    def _alive(self, foreign: list[FrozenTrial]) -> set[str]:
        """Configs of trials under way elsewhere; those of tuners that are dead or silent are given up."""
        if not foreign:
            return set()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            optuna.storages.fail_stale_trials(self._study)
        alive = set()
        for trial in foreign:
            attributes = trial.user_attrs
            if "owner" not in attributes:
                continue  # not one of ours
            if _dead(attributes["owner"]) or time.time() - attributes["since"] > ABANDONED_SECONDS:
                self._finish(trial._trial_id, TrialState.FAIL)
            elif not self._storage.get_trial(trial._trial_id).state.is_finished():
                alive.add(config_key(attributes["config"]))
        return alive

    def claim(self, configs: list[Config], most: int) -> list[Config]:
        """Claims configs; returns those that are this process's to evaluate.

        Args:
            configs: What to claim.
            most: Distinct configs that the study shall have, everyone's together.
        """
        for config in configs:
            # The config is what is read back. As parameters it is for optuna's own tools, such as its dashboard; they
            # take 7 ms a trial in SQLite. A value that is none of the choices, of an older winner say, is left out.
            attributes = {"config": config, "owner": _owner(), "since": time.time()}
            known = {k: d for k, d in self._distributions.items() if config.get(k) in d.choices}
            trial = optuna.trial.create_trial(
                state=TrialState.RUNNING,
                params={name: config[name] for name in known},
                distributions={**known},
                user_attrs=attributes,
            )
            identity = self._storage.create_new_trial(self._id, trial)
            self._claims[config_key(config)] = identity
            self._heart.add(identity)
        # Whoever claimed one of them before has been written by now: numbers are handed out in turn. The dead are
        # given up first; then one look at all trials decides, as from one look to the next a claim may be finished.
        trials, foreign = self._trials()
        if foreign:
            self._alive(foreign)
            trials, _ = self._trials()
        holders: dict[str, int] = {}
        for trial in trials:
            if "outcome" in trial.user_attrs if trial.state.is_finished() else "config" in trial.user_attrs:
                holders.setdefault(config_key(trial.user_attrs["config"]), trial._trial_id)
        first = dict(list(holders.items())[:most])
        won = []
        for config in configs:
            if first.get(config_key(config)) == self._claims[config_key(config)]:
                won.append(config)
            else:
                self.release(config)
        return won

    def finish(self, outcome: Outcome, values: list[float] | None) -> bool:
        """Records what became of a claimed config; ``values`` are its objectives, None if it failed.

        Returns:
            False if this process was given up for dead in the meantime: the config is another's then.
        """
        trial = self._claims[config_key(outcome.config)]
        data = {
            "times": {str(tokens): value for tokens, value in outcome.times.items()},
            "failure": outcome.failure,
            "details": outcome.details,
        }
        try:
            self._storage.set_trial_user_attr(trial, "outcome", data)
        except optuna.exceptions.UpdateFinishedTrialError:
            self._drop(outcome.config)
            return False
        state = TrialState.FAIL if values is None else TrialState.COMPLETE
        done = self._finish(trial, state, values)
        self._drop(outcome.config)
        return done

    def release(self, config: Config) -> None:
        """Gives a claim back."""
        self._finish(self._claims[config_key(config)], TrialState.FAIL)
        self._drop(config)

    def release_all(self) -> None:
        """Gives all claims back."""
        for key in list(self._claims):
            self.release(json.loads(key))

    def _drop(self, config: Config) -> None:
        self._heart.remove(self._claims.pop(config_key(config)))

    def _finish(self, trial: int, state: TrialState, values: list[float] | None = None) -> bool:
        try:
            return self._storage.set_trial_state_values(trial, state, values)
        except optuna.exceptions.UpdateFinishedTrialError:  # another tuner was first
            return False

    def condemn(self, outcome: Outcome) -> None:
        """Records that a config which was timed cannot be used after all."""
        self._study.set_user_attr(CONDEMNED + config_key(outcome.config), outcome.failure)

    def decision(self, outcomes: list[Outcome]) -> Winners | None:
        """The winners that were chosen among just these outcomes, if they have been."""
        made = self._study.user_attrs.get(f"winners {_digest(outcomes)}")
        return made and Winners([TunedBucket(**bucket) for bucket in made["buckets"]], made["held_out_regret"])

    def decide(self, outcomes: list[Outcome], winners: Winners) -> Winners:
        """Records winners; returns those of another tuner if it was first."""
        made = self.decision(outcomes)
        if made is None:
            self._study.set_user_attr(f"winners {_digest(outcomes)}", asdict(winners))
            made = winners
        return made


@dataclass(frozen=True)
class Study:
    """What a storage holds of one problem under one set of circumstances.

    Attributes:
        problem: What was tuned.
        target: Name of the target.
        circumstances: Evidence, template hash, device and versions.
        outcomes: By anyone, in the order of the claims.
    """

    problem: Problem
    target: str
    circumstances: list[str]
    outcomes: list[Outcome]


def read_studies(storage: optuna.storages.BaseStorage) -> list[Study]:
    """Everything that tuners have recorded in a storage, the oldest study first."""
    studies = []
    for frozen in storage.get_all_studies():
        attributes = frozen.user_attrs
        if "about" in attributes:
            about = attributes["about"]
            problem = Problem.of(about["op"], about["shape"], about["variant"])
            trials = storage.get_all_trials(frozen._study_id, deepcopy=False)
            outcomes = _with_condemned(finished(trials), attributes)
            studies.append(Study(problem, about["target"], about["circumstances"], outcomes))
    return studies


def _with_condemned(outcomes: list[Outcome], attributes: dict[str, Any]) -> list[Outcome]:
    """The outcomes, those that `Record.condemn` was told of as failures."""
    return [
        Outcome(outcome.config, {}, attributes[key], outcome.details)
        if (key := CONDEMNED + config_key(outcome.config)) in attributes
        else outcome
        for outcome in outcomes
    ]


def finished(trials: list[FrozenTrial]) -> list[Outcome]:
    """Outcomes of the trials that have one, the first of each config, in the order of the claims."""
    outcomes: dict[str, Outcome] = {}
    for trial in trials:
        attributes = trial.user_attrs
        if trial.state.is_finished() and "outcome" in attributes:
            data = attributes["outcome"]
            times = {int(tokens): float(value) for tokens, value in data["times"].items()}
            outcome = Outcome(attributes["config"], times, data["failure"], data["details"])
            outcomes.setdefault(config_key(outcome.config), outcome)
    return list(outcomes.values())


def _digest(outcomes: list[Outcome]) -> str:
    text = json.dumps(sorted([config_key(o.config), sorted(o.times.items())] for o in outcomes if not o.failure))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
