"""Entries, searches and baselines for the report's tests: shipped entries, and searches made up around them."""

from __future__ import annotations

import math
import random
import zlib
from dataclasses import replace

from tunegen.codegen.render import template_hash
from tunegen.configs import TunedEntry, load_entries
from tunegen.ops import Config, Problem, config_key, get_family
from tunegen.paths import tuned_configs_dir
from tunegen.report.baselines import Baselines
from tunegen.report.gather import limit_of
from tunegen.search.record import Outcome, Study
from tunegen.targets import get_target

NORM = Problem.of("rmsnorm_mxfp4_quant", {"hidden_size": 7168})
ROPE = Problem.of("mla_rope_cache", {"kv_lora_rank": 512, "num_heads": 128, "rope_dim": 64})
# A message that would be markup if the page took it for some.
FAILURE = "<script>alert(1)</script> out of resource: shared memory, Required: 262144, Hardware limit: 232448"


def shipped(problem: Problem, target: str) -> TunedEntry:
    """The shipped entry of a problem, as if today's template had made it."""
    entry = next(entry for entry in load_entries(tuned_configs_dir(), [target]) if entry.problem == problem)
    return replace(entry, template_hash=template_hash(get_family(entry.op).template))


def time_of(config: Config, tokens: int, limit: float) -> float:
    """A made-up time: ``num_warps`` alone matters, but for a hundredth."""
    off = abs(math.log2(int(config["num_warps"]) / 4))
    noise = zlib.crc32(f"{config_key(config)} {tokens}".encode()) / 2**32
    return limit * (1.1 + 0.2 * off + 0.01 * noise)


def search_of(entry: TunedEntry, configs: int = 40) -> Study:
    """A search that an entry could have come from; every ninth config has failed, winners and the default have not."""
    family, target = get_family(entry.op), get_target(entry.target)
    default = family.default(entry.problem, target)
    winners = [bucket.config for bucket in entry.buckets]
    draw = random.Random(configs)
    knobs = family.knobs(entry.problem, target)
    sample: list[Config] = []
    while len(sample) < configs:
        config = family.canonical({knob.name: draw.choice(knob.choices) for knob in knobs})
        if family.valid(entry.problem, target, config):
            sample.append(config)
    tried = list({config_key(config): config for config in [default, *sample, *winners]}.values())
    # Buckets between tuned counts were raced when the search was over.
    limits = {bucket.tokens: bucket.fields["default_us"] for bucket in entry.buckets if not bucket.raced}
    outcomes = []
    for index, config in enumerate(tried):
        if index % 9 == 8 and config not in winners:
            outcomes.append(Outcome(config, {}, FAILURE.replace("262144", str(262144 + index)), {}))
        else:
            times = {tokens: time_of(config, tokens, limit) for tokens, limit in limits.items()}
            outcomes.append(Outcome(config, times, "", {}))
    environment = [f"{key} {value}" for key, value in entry.environment.items()]
    about = [entry.evidence, "0" * 12, str(entry.device), *environment]
    return Study(entry.problem, entry.target, about, outcomes)


def aiter_of(entry: TunedEntry) -> Baselines:
    """Made-up times of two other kernels beside an entry."""
    limits = {bucket.tokens: limit_of(bucket) or 1.0 for bucket in entry.buckets}
    times = {kernel: {n: factor * t for n, t in limits.items()} for kernel, factor in (("aiter", 1.5), ("unfused", 3))}
    return Baselines(entry.problem, str(entry.environment["device_name"]), times)
