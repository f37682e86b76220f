"""featurestream and featurestream_consumer as they are imported: public names, loaded when they are asked for."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec

import pytest

PACKAGES = ("featurestream", "featurestream_consumer")


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_are_sorted_and_all_there(package: str) -> None:
    module = import_module(package)
    names = [name for name in module.__all__ if name != "__version__"]
    assert names == sorted(names)
    assert [name for name in names if not callable(getattr(module, name))] == []
    assert set(names) <= set(dir(module))


@pytest.mark.parametrize("package", PACKAGES)
def test_no_public_name_is_a_modules(package: str) -> None:
    """Importing the module would put it in the name's place."""
    names = import_module(package).__all__
    assert [name for name in names if find_spec(f"{package}.{name}")] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_a_name_that_there_is_not_is_an_attribute_error(package: str) -> None:
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'trian'"):
        _ = import_module(package).trian


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_the_package_imports_nothing_heavy(package: str) -> None:
    program = (
        f"import sys, {package}\n"
        "heavy = {'torch', 'numpy', 'pandas', 'matplotlib', 'pydantic', 'msgspec', 'confluent_kafka'}\n"
        "sys.exit(' '.join(heavy & set(sys.modules)) or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
