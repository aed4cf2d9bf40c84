"""Tests marked ``cuda`` are there only where a GPU is."""

import torch


def pytest_ignore_collect(collection_path, config):
    """They are not skipped elsewhere: a skipped test looks like one that was run."""
    return True if collection_path.name == "test_cuda.py" and not torch.cuda.is_available() else None
