"""The study of V, and the speeds that it puts beside errors."""

from dataclasses import asdict

from study.runs import quick

from cupy_intfa import get_recipe
from cupy_intfa.study import v_quantisation
from cupy_intfa.study.study import pick


def test_schemes_of_v_are_the_presets_with_another_v() -> None:
    for reference, preset in v_quantisation.REFERENCES.items():
        base = get_recipe(preset)
        for scheme, recipe in v_quantisation.schemes(reference).items():
            assert recipe.p_reference == reference
            changed = {name for name, value in asdict(recipe).items() if value != asdict(base)[name]}
            assert changed <= {"v_granularity", "smooth_v"} | (
                {"pv", "p_levels"} if scheme in v_quantisation.WIDE else set()
            )
            if scheme not in v_quantisation.WIDE:
                assert scheme == f"{recipe.v_granularity}{', centred' * recipe.smooth_v}"


def test_scales_of_v_follow_the_outliers() -> None:
    rows = pick(quick("v_quantisation").rows, data="outlier_token", reference="tile")
    error = {row["scheme"]: row["relative_rmse"] for row in rows}
    assert error["token"] < 0.85 * error["block_channel"] < 0.68 * error["tensor"]  # .81 and .60
    means = v_quantisation.means(quick("v_quantisation").rows, "tile")
    assert means["tensor"] == 1.0
    assert means["block_channel"] < means["channel"] < 1.0
