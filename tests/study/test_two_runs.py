"""Two runs of a study agree: with the same seeds to the last bit, with others within the spread that they state."""

from dataclasses import replace

import pytest
from study.runs import quick

from cupy_intfa.study.registry import STUDIES

DRAWN = {
    "error_tables": ("relative_rmse", "relative_l1", "cosine"),
    "ablation": ("relative_rmse",),
    "peers": ("relative_rmse",),
    "adversarial": ("relative_rmse",),
    "v_quantisation": ("relative_rmse",),
    "length": ("relative_rmse",),
    "low_bits": ("relative_rmse",),
    "depth": ("relative_rmse", "cosine"),
}
"""Studies of random numbers, and what they measure on them with a spread."""
FEWER = {"error_tables": {"lengths": (256,)}, "length": {"lengths": (256,)}}


@pytest.mark.parametrize("name", [name for name in STUDIES if name not in ("error_tables", "architectures")])  # minutes
def test_the_same_seeds_give_the_same_rows(name: str) -> None:
    study = STUDIES[name]
    assert tuple(study.measure(study.sizes["quick"], "numpy")) == quick(name).rows


@pytest.mark.parametrize("name", DRAWN)
def test_other_seeds_give_the_same_within_the_spreads(name: str) -> None:
    study = STUDIES[name]
    settings = replace(study.sizes["quick"], **FEWER.get(name, {}))
    first, second = (
        list(study.measure(replace(settings, seeds=seeds), "numpy"))
        for seeds in ((0, 1, 2, 3, 4), (10, 11, 12, 13, 14))
    )
    compared = 0
    for a, b in zip(first, second, strict=True):
        assert [a[key] for key in study.keys] == [b[key] for key in study.keys]
        for value in DRAWN[name]:
            if a[value] is not None and b[value] is not None and a["ran"] != "cited":
                # Means of five normal errors differ by more than both ranges together once in fifteen thousand times.
                assert abs(a[value] - b[value]) <= a[f"{value}_spread"] + b[f"{value}_spread"], (a, b)
                compared += a[value] != b[value]
    assert compared > len(first) // 3


def test_every_study_with_seeds_is_compared() -> None:
    assert set(DRAWN) == {name for name, study in STUDIES.items() if hasattr(study.sizes["quick"], "seeds")}
