"""Where torch computes, and how steadily."""

import contextlib
import os
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from consilience.errors import SpecError

HERE = (("mkldnn", "conv"), ("mkldnn", "matmul"), ("mkldnn", "rnn"), ("cuda", "matmul"))
"""What a user may have torch round on the processor; the last since torch's old setting rules both products."""
ELSEWHERE = (*HERE, ("cuda", "conv"), ("cuda", "rnn"))


def checked_device(word: str) -> str:
    """The word itself, once torch can compute there.

    Raises:
        SpecError: There is no such device on this machine.
    """
    try:
        torch.zeros(1, device=word).item()
    except (RuntimeError, AssertionError, ImportError) as error:
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
    benchmark, fill = cudnn.benchmark, memory.fill_uninitialized_memory
    workspace = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    if not here:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # torch asks for it, NVIDIA documents it
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=not here)
    cudnn.benchmark = False
    memory.fill_uninitialized_memory = False  # a debugging aid that costs a step 3 %
    try:
        with _precise(here):
            yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(strict, warn_only=lenient)
        cudnn.benchmark = benchmark
        memory.fill_uninitialized_memory = fill
        if workspace is None:
            os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


@contextlib.contextmanager
def _precise(here: bool) -> Iterator[None]:
    """All 23 bits of a float32's fraction inside, where a user let torch drop some; afterwards what they asked for.

    Torch has an old and, since 2.9, a new setting of the same thing; the old one cannot be read while the two disagree.
    So the new one is made full before the old one is read, and again after that was written, which resets the new one.
    """
    kinds = (HERE if here else ELSEWHERE) if hasattr(torch._C, "_get_fp32_precision_getter") else ()
    before = {kind: torch._C._get_fp32_precision_getter(*kind) for kind in kinds}
    try:
        _all_full(kinds)
        matmul, short = torch.get_float32_matmul_precision(), not here and _cudnn_is_short()
        try:
            torch.set_float32_matmul_precision("highest")
            if short:
                torch.backends.cudnn.allow_tf32 = False
            _all_full(kinds)
            yield
        finally:
            torch.set_float32_matmul_precision(matmul)
            if short:
                torch.backends.cudnn.allow_tf32 = True
    finally:
        for kind, precision in before.items():
            torch._C._set_fp32_precision_setter(*kind, "none")  # as whole backends have it, where that is the same
            if torch._C._get_fp32_precision_getter(*kind) != precision:
                torch._C._set_fp32_precision_setter(*kind, precision)


def _all_full(kinds: Iterable[tuple[str, str]]) -> None:
    for kind in kinds:
        torch._C._set_fp32_precision_setter(*kind, "ieee")


def _cudnn_is_short() -> bool:
    """Whether cuDNN's old setting allows ten bits, once the new one does not."""
    try:
        return torch.backends.cudnn.allow_tf32
    except RuntimeError:  # torch says so where the two disagree
        return True


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
