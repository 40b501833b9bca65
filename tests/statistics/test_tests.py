"""Effect sizes, corrections, permutation tests and ANOVA against pingouin, scipy, statsmodels and textbooks."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from cmma.statistics.anova import one_way_anova, tukey
from cmma.statistics.correction import benjamini_hochberg, holm
from cmma.statistics.effect import cohens_d
from cmma.statistics.permutation import label_permutation_p, sign_flip_p

# scipy's documentation of tukey_hsd, after NIST/SEMATECH e-Handbook 7.4.7.1: pain relief by drug brand
PAIN = {"A": [24.5, 23.5, 26.4, 27.1, 29.9], "B": [28.4, 34.2, 29.5, 32.2, 30.1], "C": [26.1, 28.3, 24.3, 26.2, 27.8]}
# Benjamini and Hochberg 1995, section 4.1: 15 endpoints of the thrombolysis trial
THROMBOLYSIS = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.3240,
                0.4262, 0.5719, 0.6528, 0.7590, 1.0000]  # fmt: skip


def test_benjamini_hochberg_1995_rejects_four_and_bonferroni_three():
    assert (benjamini_hochberg(THROMBOLYSIS) <= 0.05).sum() == 4
    assert (np.array(THROMBOLYSIS) * 15 <= 0.05).sum() == 3
    assert (holm(THROMBOLYSIS) <= 0.05).sum() == 3


def test_corrections_equal_pingouin():
    pingouin = pytest.importorskip("pingouin")
    p = np.random.default_rng(0).beta(0.4, 2, size=200)
    assert benjamini_hochberg(p) == pytest.approx(pingouin.multicomp(p, method="fdr_bh")[1])
    assert holm(p) == pytest.approx(pingouin.multicomp(p, method="holm")[1])


def test_a_test_that_was_not_made_does_not_count():
    adjusted = holm([0.01, np.nan, 0.03])
    assert adjusted == pytest.approx([0.02, np.nan, 0.03], nan_ok=True)
    assert benjamini_hochberg([]).shape == (0,)


def test_cohens_d_equals_pingouin():
    pingouin = pytest.importorskip("pingouin")
    rng = np.random.default_rng(1)
    a, b = rng.normal(1, 2, size=30), rng.normal(0, 1, size=45)
    assert cohens_d(a, b) == pytest.approx(pingouin.compute_effsize(a, b, eftype="cohen"))


def test_paired_d_is_the_paired_t_over_root_n():
    rng = np.random.default_rng(2)
    a = rng.normal(size=25)
    b = a + rng.normal(0.3, 0.5, size=25)
    assert cohens_d(a, b, paired=True) == pytest.approx(stats.ttest_rel(a, b).statistic / 5)


def test_cohens_d_is_vectorised_and_defined_without_spread():
    a, b = np.random.default_rng(3).normal(size=(2, 7, 20))
    assert cohens_d(a, b)[4] == pytest.approx(cohens_d(a[4], b[4]))
    assert cohens_d([1, 1, 1], [1, 1, 1]) == 0
    assert cohens_d([2, 2, 2], [1, 1, 1]) == np.inf


def test_sign_flip_agrees_with_scipy_exact():
    differences = np.random.default_rng(4).normal(0.4, 1, size=12)
    exact = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=np.inf, vectorized=True
    )
    assert sign_flip_p(differences, n=20_000) == pytest.approx(exact.pvalue, abs=0.01)


def test_label_permutation_agrees_with_scipy_exact():
    rng = np.random.default_rng(5)
    a, b = rng.normal(size=7), rng.normal(1, 1, size=6)
    exact = stats.permutation_test((a, b), lambda a, b, axis: a.mean(axis) - b.mean(axis), n_resamples=np.inf)
    assert label_permutation_p(a, b, n=20_000) == pytest.approx(exact.pvalue, abs=0.012)


@pytest.mark.parametrize("test", [sign_flip_p, lambda x_NT, n: label_permutation_p(x_NT[:15], x_NT[15:], n)])
def test_p_is_uniform_under_the_null(test):
    """At least as many as promised and no more: P(p ≤ α) = α for every α on the grid."""
    # independent tests need independent flips, hence one call per test
    p = np.array([test(np.random.default_rng(seed).normal(size=(40, 1)), n=199)[0] for seed in range(2000)])
    for alpha in (0.01, 0.05, 0.1, 0.5):
        assert (p <= alpha).mean() == pytest.approx(alpha, abs=4 * np.sqrt(alpha * (1 - alpha) / len(p)))


def test_p_is_never_zero_and_zeros_are_never_significant():
    assert sign_flip_p(np.ones(50), n=999) == pytest.approx(1 / 1000)
    assert sign_flip_p(np.zeros(50), n=999) == 1
    assert label_permutation_p(np.zeros(5), np.zeros(6), n=99) == 1


def test_refined_p_reaches_below_one_in_a_thousand():
    """Twelve equal differences: two of 2^12 sign patterns are as extreme, p = 2/4096."""
    x_NT = np.column_stack([np.ones(12), np.random.default_rng(0).normal(size=12), np.zeros(12)])
    p = sign_flip_p(x_NT, n=1000, n_max=100_000)
    assert p[0] == pytest.approx(2 / 4096, rel=0.35)
    assert p[1] == sign_flip_p(x_NT[:, 1], n=1000)  # settled at the first look
    assert p[2] == 1


def test_permutations_are_vectorised_over_tests():
    x_NT = np.random.default_rng(6).normal(0.2, 1, size=(30, 50))
    assert sign_flip_p(x_NT, n=500, seed=3)[17] == sign_flip_p(x_NT[:, 17], n=500, seed=3)


def test_anova_of_nist_pain_data():
    anova = one_way_anova(PAIN)
    assert (anova.df_between, anova.df_within) == (2, 12)
    f, p = stats.f_oneway(*PAIN.values())
    assert (anova.f, anova.p) == pytest.approx((f, p))
    assert anova.eta_squared == pytest.approx(2 * f / (2 * f + 12))  # η² from F and the degrees of freedom


def test_anova_equals_pingouin():
    pingouin = pytest.importorskip("pingouin")
    import pandas as pd

    frame = pd.DataFrame([(name, value) for name, values in PAIN.items() for value in values], columns=["brand", "y"])
    row = pingouin.anova(frame, dv="y", between="brand").iloc[0]
    assert one_way_anova(PAIN).eta_squared == pytest.approx(row["np2"])
    assert one_way_anova(PAIN).f == pytest.approx(row["F"])


def test_tukey_as_scipy_documents_it():
    """scipy.stats.tukey_hsd's worked example: A–B p = 0.014, A–C p = 0.980, B–C p = 0.020."""
    table = tukey({"A": PAIN["A"], "B": PAIN["B"], "C": PAIN["C"]})
    assert list(zip(table.a, table.b, strict=True)) == [("A", "B"), ("A", "C"), ("B", "C")]
    assert table.difference.to_numpy() == pytest.approx([-4.6, -0.26, 4.34], abs=5e-3)
    assert table.p.to_numpy() == pytest.approx([0.014, 0.980, 0.020], abs=5e-4)
