"""Random configurations of caches and attention agree with NumPy (utils/differential.py): 25 of them, and caches that lie would be noticed."""

import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

import alignedkv

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "utils"))
import differential  # noqa: E402

SEEDS = [f"1.{number}" for number in range(25)]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_configuration_agrees(seed):
    verdict, said, _ = differential.outcome(seed)
    assert verdict in ("right", "refused"), said


def test_a_seed_is_a_configuration():
    first, again, other = (differential.Configuration(seed) for seed in (SEEDS[0], SEEDS[0], SEEDS[1]))
    for configuration in (first, again, other):
        configuration.judge()
    assert str(first) == str(again) != str(other)


# Caches that are not what they say

HONEST = {name: getattr(alignedkv.KVCache, name) for name in ("append", "truncate", "batch_select", "attend", "reads")}


def attending(asked=lambda options: options, said=lambda found: found):
    """A method `attend` that asks for something else, or says something else."""

    def attend(self, out=None, **options):
        names = ["out", *(["lse"] if options["return_lse"] else []), *(["bound", "estimate"] if options["certify"] else [])]
        found = said(dict(zip(names, differential.as_list(HONEST["attend"](self, **asked(dict(options)))))))
        if out is not None:
            out[...] = found["out"]
            found["out"] = out
        return found["out"] if len(found) == 1 else tuple(found.values())

    return attend


def changed(name, change):
    return attending(said=lambda found: {**found, name: change(found[name])} if name in found else found)


def lenient(self, **options):
    try:
        return HONEST["attend"](self, **options)
    except alignedkv.Error:
        return None


def backwards(self, k, v, **options):
    HONEST["append"](self, k, v[:, :, ::-1], **options)


def keeping_one_more(self, tokens):
    HONEST["truncate"](self, tokens if isinstance(tokens, list) else min(tokens + 1, len(self)))


LIES = {
    "results that are off": ("attend", changed("out", lambda out: out * np.float32(1.1)), "rows are off by more than they may"),
    "another scale": ("attend", attending(asked=lambda options: {**options, "scale": 0.2}), "rows are off by more than they may"),
    "queries that see all": ("attend", attending(asked=lambda options: {**options, "causal": False}), "rows are off by|finite or not"),
    "logits that say nothing": ("attend", attending(asked=lambda options: {**options, "sink_logits": None}), "rows are off by|logarithms are off|finite or not"),
    "bounds that are none": ("attend", changed("bound", lambda bound: bound / 1000), "of its bound"),
    "another logarithm": ("attend", changed("lse", lambda lse: lse / np.log(np.float32(2))), "logarithms are off"),
    "no NaN": ("attend", changed("out", np.nan_to_num), "finite or not"),
    "no errors": ("attend", lenient, "expected an error of .*, got none"),
    "bits that are not counted": ("reads", property(lambda self: {name: count * 3 // 4 for name, count in HONEST["reads"].fget(self).items()}), "are counted"),
    "values in another order": ("append", backwards, "v of batch entry"),
    "a token that stays": ("truncate", keeping_one_more, "lengths are"),
    "other sequences": ("batch_select", lambda self, indices: HONEST["batch_select"](self, indices[::-1]), "of batch entry|lengths are"),
    "no copies": ("copy", lambda self: self, "a copy that stayed was changed"),
}


SHOWS = {  # in which configurations alone
    "queries that see all": lambda configuration: configuration.recipe.scoring.get("causal") and configuration.recipe.queries > 1,
    "logits that say nothing": lambda configuration: configuration.recipe.has_sink_logits,
    "no errors": lambda configuration: configuration.is_mistaken,
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_noticed(monkeypatch, lie):
    name, method, expected = LIES[lie]
    monkeypatch.setattr(alignedkv.KVCache, name, method)
    shows = SHOWS.get(lie, lambda configuration: not configuration.is_mistaken)
    seeds = (seed for number in range(250) if shows(differential.Configuration(seed := f"1.{number}")))
    found = ((verdict, said) for verdict, said, _ in map(differential.outcome, seeds))
    assert any(verdict == "wrong" and re.search(expected, said.split("\n")[0]) for verdict, said in found)


def test_an_error_that_spoils_is_noticed(monkeypatch):
    def spoiling(configuration, good):
        def act():
            configuration.cache.truncate(0)
            raise alignedkv.Error("expected nothing")

        yield "spoiling", "expected nothing", act

    monkeypatch.setattr(differential, "mistakes", spoiling)
    seeds = (seed for number in range(250) if differential.Configuration(seed := f"1.{number}").is_mistaken)
    assert any("a refused call changed the cache" in said for _, said, _ in map(differential.outcome, seeds))


# The program


def run(*options):
    return subprocess.run([sys.executable, ROOT / "utils/differential.py", *options], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": ":".join(sys.path)})


def test_the_program_says_what_it_found():
    said = run("--seed", "1", "--count", "3")
    assert said.returncode == 0 and re.match(r"3 configurations in \d+ s: ", said.stdout.splitlines()[-1]), said.stdout + said.stderr
    assert run("--replay", "1.2").stdout.split()[0] in ("right", "refused")


@pytest.mark.parametrize("options, message", [(("--count", "0"), "expected --count of 1 or more, got 0"), (("--seed", "-1"), "expected --seed of 0 or more, got -1"),
                                              (("--replay", "7"), "expected --replay of a seed such as 0.123, got '7'")])
def test_options_that_mean_nothing(options, message):
    said = run(*options)
    assert said.returncode == 2 and message in said.stderr


def test_a_crash_is_a_verdict_and_others_go_on(monkeypatch, capsys):
    honest = differential.outcome
    monkeypatch.setattr(differential, "outcome", lambda seed: os._exit(1) if seed == "1.1" else honest(seed))
    assert differential.compare(["1.0", "1.1", "1.2"]) == 1
    said = capsys.readouterr().out
    assert "CRASHES --replay 1.1: " in said and "1 crashes" in said and said.splitlines()[-1].startswith("3 configurations in")


def test_memory_that_grows_is_told(monkeypatch, capsys):
    held = []
    monkeypatch.setattr(differential, "repeated", lambda: [("steady", lambda: None), ("grows", lambda: held.append(np.ones(2**17)))])
    assert differential.leaks(100) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("steady: 100 calls") and said[1].startswith("WRONG grows: 100 calls") and said[2] == "1 kinds of calls grow by more than 4 MB"
