"""Config files are read anew by each test of a verb."""

import sys

import pytest


@pytest.fixture(autouse=True)
def fresh_config_module():
    """ml_collections runs each config file in the names of the one before; a process reads only one."""
    sys.modules.pop("config_config", None)
    yield
    sys.modules.pop("config_config", None)
