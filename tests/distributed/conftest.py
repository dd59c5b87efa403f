from collections.abc import Iterator

import pytest

from tests.distributed.pool import RankingGroup


@pytest.fixture(scope="session")
def pool() -> Iterator[RankingGroup]:
    """Two processes for all tests of this folder."""
    pool = RankingGroup()
    yield pool
    pool.close()
