"""Several processes for one run, one for each GPU, as torchrun starts them.

    torchrun --nproc-per-node 2 --no-python unmask train RECIPE

Each process computes its part of every batch; gradients are averaged before each step, so that all hold the same
network, and the run is the one that a single process would do. The first process validates, writes and logs. Without
torchrun there is one process, and nothing here does anything.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch import distributed as dist

from unmask.errors import UserError


def is_launched() -> bool:
    """Whether torchrun started this process beside others."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def count() -> int:
    """How many processes take part."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if count() > 1 else 0


@contextmanager
def joined(device: str) -> Iterator[str]:
    """Join the processes that torchrun started, by NCCL on GPUs and by gloo on processors.

    Args:
        device: of the recipe.

    Yields:
        The device of this process: "cuda" becomes the GPU of its number.

    Raises:
        UserError: the recipe names one GPU for all of them.
    """
    if not is_launched():
        yield device
        return
    if device.startswith("cuda:"):
        raise UserError(f"device: '{device}' is one GPU for {os.environ['WORLD_SIZE']} processes; write device=cuda")
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    yield device
    # Not after an error: the others may wait for this process, and torchrun ends them when it is gone.
    dist.barrier()  # the first one validates and writes, and holds what the others are connected to
    dist.destroy_process_group()


@torch.no_grad()
def average(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its mean over the processes, in one exchange. All must be on one device."""
    if count() == 1 or not tensors:
        return
    flat = torch.cat([x.reshape(-1).float() for x in tensors])
    dist.all_reduce(flat)
    for x, mean in zip(tensors, torch.split(flat / count(), [x.numel() for x in tensors]), strict=True):
        x.copy_(mean.view(x.shape))


def any_of(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set in any process."""
    if count() == 1:
        return flag
    found = torch.tensor([float(flag)], device=device)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return bool(found.item())
