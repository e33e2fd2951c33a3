"""The data set that the tests of this room share."""

from __future__ import annotations

import pytest
from noise_corpus import write_corpus


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> str:
    root = tmp_path_factory.mktemp("corpus")
    write_corpus(root)
    return str(root)
