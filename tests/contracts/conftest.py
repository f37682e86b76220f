"""The suites live in modules that are not named like tests; their asserts shall show values all the same."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite(
    "tests.contracts.log_contract", "tests.contracts.sink_contract", "tests.contracts.source_contract"
)
