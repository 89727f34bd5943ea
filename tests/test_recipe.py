"""Recipe: every field's choices and refusals, the legal combinations, the presets, names."""

import itertools
import re
from dataclasses import FrozenInstanceError, asdict, replace
from typing import Any

import pytest
from hypothesis import given
from strategies import P_LEVELS, QK_FORMATS, recipes

from cupy_intfa import PRESETS, Recipe, get_recipe

ALGORITHM_1: dict[str, Any] = {
    "qk": "int8",
    "qk_bits": 8,
    "pv": "int8",
    "q_granularity": "token",  # S_Q: a vector of N
    "k_granularity": "token",  # S_K: a vector of N
    "v_granularity": "tensor",  # S_V: a scalar
    "key_block": 64,  # not used: nothing is shared by a block, and the reference is the running maximum
    "p_levels": 127,  # R
    "p_reference": "running",  # m_i
    "row_sum": "quantised",  # rowsum of P after rounding
    "key_order": "first_to_last",  # j = 1 … T_c
    "smooth_k": False,
    "smooth_v": False,
    "rotate": False,
    "key_window": 0,
}


@pytest.mark.parametrize("field", ALGORITHM_1)
def test_unknown_choice_names_field_value_and_choices(field: str) -> None:
    bad: Any = 3 if field in ("p_levels", "key_window") else "wrong"
    with pytest.raises(ValueError, match=rf"^{field}={bad!r}.* expected ") as caught:
        Recipe(**{field: bad})
    if field not in ("p_levels", "key_window"):
        assert repr(ALGORITHM_1[field]) in str(caught.value), "the paper's choice must be among those offered"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"p_levels": 1}, "p_levels=1 does not go with pv='int8': expected 127 or 255"),
        ({"pv": "int8x2"}, "p_levels=127 does not go with pv='int8x2': expected 255"),
        ({"pv": "float16", "p_levels": True}, "p_levels=True does not go with pv='float16': expected 1"),
        ({"pv": "float16"}, "p_levels=127 does not go with pv='float16': expected 1"),
        ({"pv": "float8_e4m3", "p_levels": 448}, "p_levels=448 does not go with pv='float8_e4m3': expected 1 or 256"),
        ({"qk_bits": 4, "qk": "float16"}, "qk_bits=4 needs qk='int8', got qk='float16'"),
        ({"qk_bits": True}, "qk_bits=True is not a choice: expected one of (8, 4)"),
        ({"key_block": 32.0}, "key_block=32.0 is not a choice: expected one of (32, 64, 128, 256)"),
        ({"smooth_k": 1}, "smooth_k=1 is not a choice: expected one of (False, True)"),
        (
            {"qk": "float16", "q_granularity": "tensor"},
            "qk='float16' is scaled per tensor: expected q_granularity='tensor' and k_granularity='tensor', "
            "got 'tensor' and 'token'",
        ),
        (
            {"pv": "float16", "p_levels": 1, "v_granularity": "channel"},
            "pv='float16' is scaled per tensor: expected v_granularity='tensor', got 'channel'",
        ),
        ({"v_granularity": "token"}, "so a sum of quantised P is no row sum: expected row_sum='exact'"),
        ({"key_window": 96}, "key_window=96: expected 0 or a power of two"),
        ({"key_window": -64}, "key_window=-64: expected 0 or a power of two"),
        ({"key_window": 64.0}, "key_window=64.0: expected 0 or a power of two"),
        ({"key_window": True}, "key_window=True: expected 0 or a power of two"),
        ({"key_window": 32}, "key_window=32 is smaller than key_block=64: expected a multiple"),
    ],
)
def test_refusal_says_what_came_and_what_goes(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Recipe(**changes)


def is_legal(recipe: dict[str, Any]) -> bool:
    """State which combinations make sense, apart from the code that refuses the others."""
    integer_qk, integer_pv = recipe["qk"] == "int8", recipe["pv"].startswith("int8")
    return (
        recipe["p_levels"] in P_LEVELS[recipe["pv"]]
        and (
            integer_qk
            or (recipe["qk_bits"], recipe["q_granularity"], recipe["k_granularity"]) == (8, "tensor", "tensor")
        )
        and (integer_pv or recipe["v_granularity"] == "tensor")
        and (recipe["v_granularity"] != "token" or recipe["row_sum"] == "exact")
    )


def test_exactly_the_sensible_combinations_are_legal() -> None:
    choices: dict[str, tuple[Any, ...]] = {
        "qk": QK_FORMATS,
        "qk_bits": (8, 4),
        "pv": tuple(P_LEVELS),
        "q_granularity": ("tensor", "block", "token"),
        "k_granularity": ("tensor", "block", "token", "group"),
        "v_granularity": ("tensor", "channel", "block", "block_channel", "token"),
        "p_levels": (1, 127, 255, 256),
        "row_sum": ("quantised", "exact"),
    }
    wrong = []
    for values in itertools.product(*choices.values()):
        recipe = dict(zip(choices, values, strict=True))
        try:
            Recipe(**recipe)
            accepted = True
        except ValueError:
            accepted = False
        if accepted != is_legal(recipe):
            wrong.append((accepted, recipe))
    assert wrong == []


@given(recipes(), recipes())
def test_name_tells_recipes_apart(a: Recipe, b: Recipe) -> None:
    assert (a.name == b.name) == (a == b)


@given(recipes())
def test_name_can_be_read_back(recipe: Recipe) -> None:
    preset, _, changes = recipe.name.partition("+")
    fields = dict(change.split("=") for change in changes.split(",")) if changes else {}
    assert {name: str(getattr(recipe, name)) for name in fields} == fields
    assert replace(recipe, **{name: getattr(PRESETS[preset], name) for name in fields}) == PRESETS[preset]


@pytest.mark.parametrize("name", PRESETS)
def test_preset_knows_its_name(name: str) -> None:
    assert PRESETS[name].name == name
    assert get_recipe(name) is PRESETS[name]


def test_paper_is_algorithm_1() -> None:
    assert asdict(PRESETS["paper"]) == ALGORITHM_1
    assert PRESETS["paper"] == Recipe()


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("paper_half", {"qk": "int8", "pv": "float16", "q_granularity": "token", "k_granularity": "token"}),
        (
            "fast",
            {
                "qk": "int8",
                "pv": "int8",
                "k_granularity": "group",
                "v_granularity": "channel",
                "p_levels": 255,
                "p_reference": "running",
                "row_sum": "exact",
                "key_order": "last_to_first",
                "smooth_k": True,
                "smooth_v": True,
            },
        ),
        (
            "precise",
            {
                "qk": "int8",
                "pv": "int8",
                "v_granularity": "channel",
                "p_levels": 255,
                "p_reference": "tile",
                "row_sum": "exact",
                "key_order": "last_to_first",
                "smooth_k": True,
                "smooth_v": True,
                "rotate": True,
            },
        ),
        ("half", {"qk": "int8", "pv": "float16", "smooth_k": True}),
        ("fp16", {"qk": "float16", "pv": "float16", "q_granularity": "tensor", "k_granularity": "tensor"}),
        ("fp8_e4m3", {"qk": "float8_e4m3", "pv": "float8_e4m3", "v_granularity": "tensor"}),
        ("fp8_e5m2", {"qk": "float8_e5m2", "pv": "float8_e5m2", "v_granularity": "tensor"}),
    ],
)
def test_preset_is_what_its_name_promises(name: str, fields: dict[str, Any]) -> None:
    recipe = asdict(PRESETS[name])
    assert {field: recipe[field] for field in fields} == fields


def test_presets_cannot_be_changed() -> None:
    with pytest.raises(TypeError, match="does not support item assignment"):
        PRESETS["paper"] = Recipe(p_levels=255)  # type: ignore[index]
    with pytest.raises(FrozenInstanceError):
        PRESETS["paper"].p_levels = 255  # type: ignore[misc]


@pytest.mark.parametrize(
    ("changes", "integer", "top"),
    [
        ({}, True, 127),
        ({"p_levels": 255}, True, 255),
        ({"pv": "int8x2", "p_levels": 255}, True, 65535),
        ({"pv": "float16", "p_levels": 1}, False, 1),
        ({"pv": "float8_e4m3", "p_levels": 256}, False, 256),
    ],
)
def test_range_of_p(changes: dict[str, Any], integer: bool, top: int) -> None:
    recipe = Recipe(**changes)
    assert (recipe.integer_pv, recipe.p_top) == (integer, top)


def test_get_recipe_takes_a_name_or_a_recipe_and_changes() -> None:
    recipe = Recipe(p_levels=255)
    assert get_recipe(recipe) is recipe
    assert get_recipe(recipe, rotate=True) == replace(recipe, rotate=True)
    assert get_recipe("precise", p_reference="running") == replace(PRESETS["precise"], p_reference="running")
    assert get_recipe().name in PRESETS


@pytest.mark.parametrize(
    ("error", "arguments", "changes", "message"),
    [
        (ValueError, ("fastest",), {}, "recipe 'fastest' is unknown: expected paper, paper_half, fast, precise, half"),
        (TypeError, (3,), {}, "recipe is a int: expected the name of a preset or a Recipe"),
        (TypeError, (None,), {}, "recipe is a NoneType: expected"),
        (TypeError, ("paper",), {"levels": 255}, "levels"),
        (ValueError, ("paper",), {"p_levels": 128}, "p_levels=128 does not go with pv='int8'"),
    ],
)
def test_get_recipe_refuses(
    error: type[Exception], arguments: tuple[Any, ...], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        get_recipe(*arguments, **changes)
