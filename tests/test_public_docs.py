"""Every public name is documented in full: what it takes, gives and raises, and an example that runs."""

import doctest
import inspect

import pytest
from numpydoc.validate import validate

import cupy_intfa

# Left to taste: where the quotes stand, an extended summary, See Also, full stops after a shape and a unit.
FREE = {"GL01", "GL02", "ES01", "SA01", "SA04", "PR08", "PR09", "RT03", "RT04", "RT05"}
DOCUMENTED = [name for name in cupy_intfa.__all__ if callable(getattr(cupy_intfa, name))]


def test_public_names_exist_once_and_are_sorted() -> None:
    names = cupy_intfa.__all__
    assert sorted(set(names)) == sorted(names)
    assert [name for name in names if not hasattr(cupy_intfa, name)] == []


@pytest.mark.parametrize("name", DOCUMENTED)
def test_public_docstring_is_complete(name: str) -> None:
    found = validate(f"cupy_intfa.{name}")["errors"]
    assert [(code, text) for code, text in found if code not in FREE] == []


@pytest.mark.parametrize("name", DOCUMENTED)
def test_public_example_is_a_doctest(name: str) -> None:
    examples = doctest.DocTestParser().get_examples(inspect.getdoc(getattr(cupy_intfa, name)) or "")
    assert any(example.want for example in examples), f"{name} has no example with a result to compare"
