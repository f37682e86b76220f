"""featurestream_consumer as it is imported: public names, loaded when they are asked for."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import pytest

import featurestream_consumer


def test_public_names_are_sorted_and_all_there() -> None:
    names = featurestream_consumer.__all__
    assert names == sorted(names)
    assert [name for name in names if not callable(getattr(featurestream_consumer, name))] == []
    assert set(names) <= set(dir(featurestream_consumer))


def test_no_public_name_is_a_modules() -> None:
    """Importing the module would put it in the name's place."""
    assert [name for name in featurestream_consumer.__all__ if find_spec(f"featurestream_consumer.{name}")] == []


def test_a_name_that_there_is_not_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'featurestream_consumer' has no attribute 'trian'"):
        _ = featurestream_consumer.trian


def test_importing_the_package_imports_nothing_heavy() -> None:
    program = (
        "import sys, featurestream_consumer\n"
        "sys.exit(' '.join({'torch', 'numpy', 'pandas', 'matplotlib', 'pydantic'} & set(sys.modules)) or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
