"""A sharded checkpoint that cannot be written: said, and nothing that was there is lost."""

import pytest
import torch.distributed as dist
from conftest import collected
from torch.distributed.checkpoint.filesystem import FileSystemWriter

from driftgate.errors import RunError
from driftgate.recipe import check_config
from driftgate.train.checkpoint import Position, all_checkpoints
from driftgate.train.sharded import ShardedCheckpoints
from driftgate.world import Alone


@pytest.fixture
def checkpoints(settings, tmp_path):
    """Those of a group of one rank."""
    made, _ = collected(check_config(settings), tmp_path / "run")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield ShardedCheckpoints(Alone(), tmp_path / "checkpoints", 2, made.policy, made.tokenizer, made.learner, dict)
    dist.destroy_process_group()


def test_a_disk_that_refuses_is_said_and_the_checkpoint_before_is_kept(checkpoints, monkeypatch):
    checkpoints.save(Position(1), {})
    checkpoints.wait()

    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(FileSystemWriter, "write_data", refuse)
    checkpoints.save(Position(2), {})
    with pytest.raises(RunError, match=r"step-000002: could not be written .*rank 0.*No space left.*is kept"):
        checkpoints.wait()
    assert [path.name for path in checkpoints.folder.iterdir()] == ["step-000001"]


def test_the_newest_are_kept_and_one_that_is_there_is_not_written_again(checkpoints):
    for step in (1, 2, 3, 3):
        checkpoints.save(Position(step), {})
    checkpoints.wait()
    assert [path.name for path in all_checkpoints(checkpoints.folder)] == ["step-000002", "step-000003"]
