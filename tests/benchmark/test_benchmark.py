"""The benchmark: true atoms score 1, shuffled truth scores chance, a new method is a class, the table is written."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import binom

from cmma.benchmark.config import BenchmarkConfig
from cmma.benchmark.protocols import Graph
from cmma.benchmark.recovery import match, random_cosines, recovery
from cmma.benchmark.registry import TASKS, find_methods, register
from cmma.benchmark.runner import run_benchmark
from cmma.benchmark.table import to_table, write_results
from cmma.benchmark.task import Task
from cmma.benchmark.tasks.circuit import CircuitTask
from cmma.benchmark.tasks.planted import PlantedTask
from cmma.errors import ConfigError
from cmma.models.spec import ModelSpec
from cmma.testbed.planted.atoms import plant_atoms
from cmma.testbed.planted.config import CircuitConfig, PlantedConfig

MODEL = ModelSpec()


@pytest.fixture(scope="module")
def planted(oracle):
    task = PlantedTask(BenchmarkConfig(planted=oracle.planted, scale=0.2, n_latents=36, seeds=1), MODEL)
    return task, task.world(0)


def test_a_context_is_for_codes_and_not_for_what_is_asked_of_pairs(planted, oracle):
    class Peeping(oracle):
        """Its codes are those of the other token of the pair, where it is allowed to see it."""

        attends = True

        def encode(self, acts_BW, modality_B, context_BCW=None):
            if context_BCW is None:
                return super().encode(acts_BW, modality_B)
            return super().encode(context_BCW[:, 0], 1 - modality_B)

    task, world = planted
    honest, peeping = task.score(oracle(world), world), task.score(Peeping(world), world)
    for name in ("retrieval", "code_cosine", "support_jaccard", "cross_error", "concept_jaccard"):
        assert peeping[name] == honest[name]
    assert peeping["activation_f1"] < 0.7 < honest["activation_f1"]
    assert peeping["fvu_visual"] > 0.5


def test_the_true_atoms_score_one(planted, oracle):
    task, world = planted
    scores = task.score(oracle(world), world)
    perfect = ("max_cosine", "matched_cosine", "recall_visual", "recall_textual", "recall_shared", "cr",
               "class_accuracy_free")
    assert {name: scores[name] for name in perfect} == pytest.approx(dict.fromkeys(perfect, 1.0), abs=1e-5)
    for name in ("gre", "fvu_visual", "fvu_textual", "dead"):
        assert scores[name] == pytest.approx(0, abs=1e-5)
    assert scores["modality_share"] == pytest.approx(1 / 3)
    assert scores["label_auroc"] > 0.99
    assert scores["activation_f1"] > 0.95  # thresholds are the weakest activity of the other half: a little too high
    assert scores["l0"] == pytest.approx(float((world.test.codes_NMA > 0).sum(2).mean()), rel=1e-3)


def test_against_shuffled_truth_the_true_atoms_score_chance(planted, oracle):
    task, world = planted
    scores, chance = task.score(oracle(world), task.shuffle(world, 0)), task.chance(world)
    queries = 2 * (len(world.test) // 100) * 100
    assert binom.sf(round(scores["retrieval"] * queries) - 1, queries, chance["retrieval"]) > 1e-4
    units = 48  # atoms, the shared ones once in each modality
    low, high = binom.ppf([1e-4, 1 - 1e-4], units, chance["class_accuracy_free"]) / units
    assert low <= scores["class_accuracy_free"] <= high
    assert scores["label_auroc"] == pytest.approx(0.5, abs=0.05)
    assert scores["max_cosine"] == pytest.approx(chance["max_cosine"], abs=0.05)
    assert scores["gre"] == pytest.approx(chance["gre"], abs=0.05)
    assert scores["activation_f1"] == pytest.approx(chance["activation_f1"], abs=0.05)
    assert scores["recall_shared"] == scores["cr"] == 0
    assert scores["code_cosine"] == pytest.approx(scores["code_cosine_floor"], abs=0.05)


def test_merged_directions_are_one_latent_until_they_are_too_far_apart():
    """The mean of two unit vectors at cosine ρ has cosine √((1 + ρ)/2) with both: CR is 1 above ρ = 2·0.95² − 1."""
    for rho, cr in ((0.85, 1.0), (0.78, 0.0)):
        atoms = plant_atoms(PlantedConfig(n_visual=0, n_textual=0, n_shared=20, cosine=rho))
        merged_AW = atoms.directions_MAW.sum(0)
        numbers = recovery(match(np.stack([merged_AW, merged_AW]), atoms), atoms)
        assert numbers["cr"] == cr
        assert numbers["max_cosine"] == pytest.approx(((1 + rho) / 2) ** 0.5)
        assert numbers["gre"] == pytest.approx((1 - rho) / 2)
    split_KW = np.concatenate(atoms.directions_MAW)
    numbers = recovery(match(np.stack([split_KW, split_KW]), atoms), atoms)
    assert (numbers["cr"], numbers["recall_shared"]) == (0.0, 1.0)  # each direction has a latent of its own


def test_random_cosines_are_those_of_random_directions():
    rng = np.random.default_rng(0)
    atoms_AD, latents_KD = (part / np.linalg.norm(part, axis=1, keepdims=True)
                            for part in (rng.standard_normal((4000, 24)), rng.standard_normal((60, 24))))
    best_A = (atoms_AD @ latents_KD.T).max(1)
    expected = random_cosines(24, 60)
    assert expected["max_cosine"] == pytest.approx(best_A.mean(), abs=0.01)
    assert expected["gre"] == pytest.approx((1 - best_A**2).mean(), abs=0.01)


def test_a_graph_of_the_truth_scores_one_and_shuffled_scores_its_share():
    task = CircuitTask(BenchmarkConfig(task="circuit", circuit=CircuitConfig(n_features=40, n_edges=200)), MODEL)
    world = task.world(0)
    strength_P = world.circuit.strength_P
    truth = Graph(np.abs(strength_P), strength_P != 0, np.sign(strength_P))
    nothing = Graph(np.zeros_like(strength_P), np.zeros(len(strength_P), dtype=bool), np.zeros_like(strength_P))
    scores = task.score((truth, nothing), world)
    assert [scores[name] for name in ("auprc", "precision", "recall", "sign_accuracy")] == [1.0] * 4
    assert scores["null_discoveries"] == 0
    shuffled, chance = task.score((truth, nothing), task.shuffle(world, 0)), task.chance(world)
    assert chance["precision"] == pytest.approx(200 / 780)
    low, high = binom.ppf([1e-4, 1 - 1e-4], 200, chance["precision"]) / 200
    assert low <= shuffled["precision"] <= high
    assert np.isnan(task.score((nothing, nothing), world)["precision"])


@pytest.mark.parametrize("task", ["circuit", "attribution"])
def test_the_exact_measurement_leads_and_shuffled_truth_does_not(task):
    results = run_benchmark(BenchmarkConfig(task=task, seeds=2), 0, MODEL)
    metric, exact = {"circuit": ("auprc", "excess"), "attribution": ("signed_rank_correlation", "ablation")}[task]
    assert results.interval(exact, metric).value > 0.85
    assert results.interval("random", metric).value < 0.5
    assert results.interval("shuffled", metric).value < 0.5


@register("graph", "nothing")
class Nothing:
    """A graph builder that declares no edge."""

    def build(self, circuit, seed):
        n = len(circuit.pairs_P2)
        return Graph(np.zeros(n), np.zeros(n, dtype=bool), np.zeros(n))


def test_a_new_method_is_a_class_and_the_table_is_written(tmp_path):
    config = BenchmarkConfig(task="circuit", method=["nothing"], seeds=3, scale=0.3)
    results = run_benchmark(config, 5, MODEL)
    write_results(results, tmp_path)
    written = json.loads((tmp_path / "table.json").read_text())
    assert written["seeds"] == [5, 6, 7]
    assert list(written["rows"]) == ["nothing", "random", "shuffled"]
    assert written["rows"]["nothing"]["recall"]["value"] == 0
    assert written["rows"]["nothing"]["precision"]["seeds"] == [None] * 3
    table = to_table(results)
    assert table.columns == ("metric", "nothing", "random", "shuffled (nothing)", "chance")
    assert (tmp_path / "table.md").read_text().count("\n| ") == len(table.rows) + 2
    assert (tmp_path / "table.csv").read_text().startswith("table,row,")


def test_unknown_names_are_refused():
    with pytest.raises(ConfigError, match="task=poker"):
        BenchmarkConfig(task="poker")
    with pytest.raises(ConfigError, match=r"method=guess is not one of .*excess"):
        find_methods("graph", ["guess"])
    with pytest.raises(ConfigError, match=r"benchmark\.plugins"):
        find_methods("graph", [], ["no.such.module"])


@pytest.mark.parametrize("name", TASKS)
def test_every_task_names_methods_that_exist(name):
    from importlib import import_module

    module, attribute = TASKS[name].split(":")
    task: type[Task] = getattr(import_module(module), attribute)
    assert find_methods(task.protocol, [*task.default_methods, *task.controls])
    assert BenchmarkConfig(task=name).task == name
