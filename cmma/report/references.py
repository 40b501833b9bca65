"""The paper's reported numbers, as data, to print beside ours. They are claims to be measured against, never inputs.

The paper mixes standard errors and interval half-widths behind its "±". Where it prints an interval too, arithmetic
decides: 42.7 ± 3.4 with [-49.3, -36.1] is a standard error (1.96 × 3.4 = 6.6); 91.4 ± 2.1 with [89.3, 93.5] is a
half-width. Elsewhere the kind is UNSAID.
"""

from __future__ import annotations

from collections.abc import Mapping

from cmma.report.tables import Cell

UNSAID = "kind not stated"


def _percent(
    value: float, error: float | None = None, kind: str = UNSAID, low: float | None = None, high: float | None = None
) -> Cell:
    return Cell(value, low, high, error, kind if error is not None else "", unit="%", digits=1)


def _number(value: float, error: float | None = None, digits: int = 2, kind: str = UNSAID) -> Cell:
    return Cell(value, error=error, digits=digits, kind=kind if error is not None else "")


CLASSES = ("visual", "textual", "cross_modal", "mixed")

TABLE_1: Mapping[str, Mapping[str, Cell]] = {
    model: dict(zip(CLASSES, (_percent(value, error) for value, error in cells), strict=True))
    for model, cells in {
        "CLIP ViT-B/32": ((23.4, 1.2), (31.2, 1.5), (45.4, 1.8), (0.0, 0.0)),
        "CLIP ViT-L/14": ((22.1, 0.9), (29.8, 1.1), (47.3, 1.4), (0.8, 0.3)),
        "LLaVA-7B": ((18.7, 1.4), (35.6, 1.7), (43.2, 1.9), (2.5, 0.5)),
        "LLaVA-13B": ((17.9, 1.1), (36.4, 1.3), (42.8, 1.6), (2.9, 0.4)),
        "Stable Diffusion": ((34.5, 2.1), (28.9, 1.8), (35.1, 2.3), (1.5, 0.4)),
    }.items()
}
"""Feature specialisation in percent of features (section 5.1, Table 1)."""

NETWORK: Mapping[str, Cell] = {
    "strong pairs (I > 0.5)": _percent(12.3),
    "moderate pairs (0.2 < I ≤ 0.5)": _percent(34.7),
    "weak pairs (I ≤ 0.2)": _percent(53.0),
    "significant among strong": _percent(89.7),
    "average clustering": _number(0.67, 0.03),
    "small-world σ": _number(2.34, 0.12),
    "scale-free exponent γ": _number(2.1, 0.15),
}
"""Cross-modal interaction graph (section 5.2)."""

PHASES: Mapping[str, Cell] = {
    "phase 1: unimodal features": _percent(78.3, 3.2),
    "phase 1: cross-modal activity": _number(0.12, 0.08, kind="SD"),
    "phase 2: exponential fit R²": _number(0.94),
    "phase 2: visual-to-text ratio": _number(1.7, digits=1),
    "phase 2: peak cross-modal features": _percent(67.4),
    "phase 3: cross-modal features": _percent(71.6, 2.8),
    "phase 3: CLIP-Score": _number(0.847, 0.023, digits=3),
    "ANOVA F(2, 28)": _number(234.7, digits=1),
    "ANOVA η²": _number(0.94),
    "Kendall's W": _number(0.91),
}
"""Three-phase processing (section 5.4)."""

HALLUCINATION: Mapping[str, Cell] = {
    "all": _percent(-34.2, 2.1),
    "object": _percent(-42.7, 3.4, kind="95% CI", low=-49.3, high=-36.1),
    "attribute": _percent(-28.9, 2.8, kind="95% CI", low=-34.4, high=-23.4),
    "relation": _percent(-31.6, 3.1, kind="95% CI", low=-37.7, high=-25.5),
}
"""Change of the hallucination rate (section 5.5.1)."""

CONSISTENCY: Mapping[str, Cell] = {
    "all": _percent(28.7, 1.8),
    "visual-semantic alignment": _percent(32.4, 2.3),
    "cross-modal coherence": _percent(26.8, 2.1),
    "compositional understanding": _percent(27.1, 2.5),
}
"""Change of the CLIP-Score under amplification (section 5.5.2)."""

CONTROL_COLUMNS = ("success rate", "precision", "semantic preservation")

CONTROL: Mapping[str, Mapping[str, Cell]] = {
    dimension: dict(zip(CONTROL_COLUMNS, (_percent(*s), _number(*p), _percent(*k)), strict=True))
    for dimension, (s, p, k) in {
        "object manipulation": ((89.7, 1.9), (0.94, 0.02), (92.3, 2.1)),
        "style transfer": ((84.2, 2.3), (0.91, 0.03), (88.7, 2.8)),
        "attribute modification": ((87.3, 2.1), (0.93, 0.02), (90.1, 2.4)),
        "compositional changes": ((82.6, 2.7), (0.89, 0.03), (86.4, 3.1)),
        "overall": ((85.9, 1.2), (0.92, 0.01), (89.4, 1.3)),
    }.items()
}
"""Controllable generation (section 5.5.3, Table 2)."""

INTERPRETABILITY: Mapping[str, Cell] = {
    "function identified by experts": Cell(91.4, 89.3, 93.5, 2.1, "95% CI", 15, "%", 1),
    "Fleiss' κ": _number(0.87),
    "Cronbach's α": _number(0.94),
    "intraclass correlation": _number(0.91),
    "correlation of automated scores with those": _number(0.84),
    "attention visualisation": _percent(67.8, 3.4),
    "gradient attribution": _percent(72.3, 3.1),
    "standard SAE": _percent(79.2, 2.8),
}
"""Human evaluation (section 5.6; the correlation with scores of GPT-4: section 5.1)."""
