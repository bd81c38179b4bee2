"""Each test of a verb loads its config file afresh."""

import sys

import pytest


@pytest.fixture(autouse=True)
def fresh_config_module():
    """ml_collections runs every config file of a process in the namespace of the first one."""
    sys.modules.pop("config_config", None)
    yield
    sys.modules.pop("config_config", None)
