"""Every test sees eight CPU devices; `--slow` adds the tests marked slow."""

from __future__ import annotations

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Tests compile far longer than they compute: LLVM optimises nothing (a sixth of NaturalSpeech 2's time), and XLA's older emitters are quicker.
# launch/quickstart.sh runs with what everybody has.
os.environ["XLA_FLAGS"] = "--xla_cpu_use_fusion_emitters=false --xla_backend_optimization_level=0 " + os.environ.get("XLA_FLAGS", "")

import hypothesis
import jax
import pytest

# A busy machine is slow, not wrong.
hypothesis.settings.register_profile("house", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("house")

if os.environ["JAX_PLATFORMS"] == "cpu":
    jax.config.update("jax_num_cpu_devices", 8)  # before anything asks for devices


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes longer than a few seconds; run with --slow")
    config.addinivalue_line("filterwarnings", "ignore::DeprecationWarning")
    if config.getoption("--slow"):
        from tests import meshes

        meshes.checked = meshes.MESHES


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--slow"):
        return
    slow = [item for item in items if "slow" in item.keywords]
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if "slow" not in item.keywords]


@pytest.fixture(scope="module", autouse=True)
def forgets_programs():
    """A process that keeps every file's compiled programs runs out of memory maps, and dies where the next is kept."""
    yield
    jax.clear_caches()
