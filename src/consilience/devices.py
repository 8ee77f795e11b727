"""Where torch computes, and how steadily."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch

from consilience.errors import SpecError


def checked_device(word: str) -> str:
    """The word itself, once torch can compute there.

    Raises:
        SpecError: There is no such device on this machine.
    """
    try:
        torch.zeros(1, device=word).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        said = str(error).strip().split("\n")[0].rstrip(".")
        raise SpecError(
            f"--device {word}: expected a device that torch {torch.__version__} finds on this machine, found none "
            f"({said}); use cpu, or cuda where there is a graphics card and a torch built for it"
        ) from None
    return word


@contextlib.contextmanager
def steady(device: str = "cpu") -> Iterator[None]:
    """One torch thread, deterministic kernels and full precision inside; as it was before afterwards.

    Elsewhere than on the processor not every kernel has a deterministic twin; torch warns of those that have none.
    """
    threads, here = torch.get_num_threads(), torch.device(device).type == "cpu"
    strict, lenient = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    memory: Any = torch.utils.deterministic
    cudnn: Any = torch.backends.cudnn
    benchmark, short, fill = cudnn.benchmark, cudnn.allow_tf32, memory.fill_uninitialized_memory
    workspace = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    if not here:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # torch asks for it, NVIDIA documents it
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=not here)
    cudnn.benchmark = False
    if not here:
        cudnn.allow_tf32 = False  # ten bits of a number's fraction instead of 23: maps would be off by a thousandth
    memory.fill_uninitialized_memory = False  # a debugging aid that costs a step 3 %
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(strict, warn_only=lenient)
        cudnn.benchmark = benchmark
        if not here:
            cudnn.allow_tf32 = short
        memory.fill_uninitialized_memory = fill
        if workspace is None:
            os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


def forked(device: str = "cpu") -> contextlib.AbstractContextManager[None]:
    """The global generators of the processor and of this device may be seeded inside; afterwards they are as before."""
    kind = torch.device(device).type
    if kind == "cpu":
        return torch.random.fork_rng(devices=[])
    return torch.random.fork_rng(devices=[device], device_type=kind)


def seeded(number: int, device: str = "cpu") -> None:
    """Seed the generators of the processor and of this device, and no others."""
    torch.default_generator.manual_seed(number)  # torch.manual_seed would seed every device there is
    if torch.device(device).type != "cpu":
        accelerator = torch.get_device_module(device)
        with accelerator.device(device):
            accelerator.manual_seed(number)
