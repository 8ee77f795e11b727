"""Where torch computes and how steadily: full precision whatever a user asked of torch, and their settings again."""

import os

import pytest
import torch
from torch import backends

from consilience.devices import checked_device, forked, seeded, steady
from consilience.errors import SpecError
from tests.elsewhere import CHANCE, elsewhere

HERE = [backends.mkldnn.conv, backends.mkldnn.matmul, backends.mkldnn.rnn, backends.cuda.matmul]
ELSEWHERE = [*HERE, backends.cudnn.conv, backends.cudnn.rnn]


def setting(owner, name, value):
    return lambda: setattr(owner, name, value)


ASKED = {
    "nothing": lambda: None,
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "high, and cuda full": lambda: (torch.set_float32_matmul_precision("high"), ASKED["cuda matmul full"]()),
    "cuda matmul full": setting(backends.cuda.matmul, "fp32_precision", "ieee"),
    "cuda matmul short": setting(backends.cuda.matmul, "fp32_precision", "tf32"),
    "cuda matmul short, the old way": setting(backends.cuda.matmul, "allow_tf32", True),
    "all short": setting(backends, "fp32_precision", "tf32"),
    "all shorter": setting(backends, "fp32_precision", "bf16"),
    "all full": setting(backends, "fp32_precision", "ieee"),
    "cudnn short": setting(backends.cudnn, "fp32_precision", "tf32"),
    "cudnn full": setting(backends.cudnn, "fp32_precision", "ieee"),
    "cudnn conv full": setting(backends.cudnn.conv, "fp32_precision", "ieee"),
    "cudnn full, the old way": setting(backends.cudnn, "allow_tf32", False),
    "all short, cudnn the old way": lambda: (ASKED["all short"](), ASKED["cudnn full, the old way"]()),
    "all short, cudnn full": lambda: (
        ASKED["all short"](), ASKED["cudnn conv full"](), setattr(backends.cudnn.rnn, "fp32_precision", "ieee")
    ),
    "onednn conv short": setting(backends.mkldnn.conv, "fp32_precision", "bf16"),
    "onednn matmul short": setting(backends.mkldnn.matmul, "fp32_precision", "bf16"),
}  # fmt: skip


def known_or_none(read):
    """A setting; None where torch refuses to say it, since its two ways of setting it disagree."""
    try:
        return read()
    except RuntimeError:
        return None


def settings():
    return {
        "new": [one.fp32_precision for one in (backends, backends.cudnn, *ELSEWHERE)],
        "old": [
            known_or_none(torch.get_float32_matmul_precision),
            known_or_none(lambda: backends.cuda.matmul.allow_tf32),
            known_or_none(lambda: backends.cudnn.allow_tf32),
        ],
        "others": [torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), backends.cudnn.benchmark],
    }


@pytest.fixture
def asked(request):
    """What a user asked of torch; undone after the test."""
    ASKED[request.param]()
    yield request.param
    torch.set_float32_matmul_precision("highest")
    backends.cudnn.allow_tf32 = True
    for one in (backends, backends.cudnn, *HERE):
        one.fp32_precision = "none"


def full(device):
    """Whether the settings ask for full precision there, in torch's new way and in its old."""
    short = not all(one.fp32_precision == "ieee" for one in (HERE if device == "cpu" else ELSEWHERE))
    short |= torch.get_float32_matmul_precision() != "highest" or backends.cuda.matmul.allow_tf32
    return not short and (device == "cpu" or not backends.cudnn.allow_tf32)


every_wish = pytest.mark.parametrize("asked", ASKED, indirect=True)
anywhere = pytest.mark.parametrize("device", ["cpu", "cuda"])


@every_wish
@anywhere
def test_precision_is_full_inside_and_as_it_was_afterwards(asked, device):
    before = settings()
    with steady(device):
        assert full(device)
        with steady(device):
            assert full(device)
        assert full(device), "the inner one left by restoring the user's"
    assert settings() == before


@every_wish
@anywhere
def test_settings_are_as_they_were_after_an_exception_too(asked, device):
    before = settings()
    with pytest.raises(KeyboardInterrupt), steady(device):
        raise KeyboardInterrupt
    assert settings() == before


@pytest.mark.parametrize("asked", ["all short"], indirect=True)
@anywhere
def test_what_followed_a_whole_backends_setting_still_follows_it(asked, device):
    with steady(device):
        pass
    backends.fp32_precision = "bf16"
    assert {one.fp32_precision for one in (backends.mkldnn.conv, backends.mkldnn.matmul)} == {"bf16"}


@pytest.mark.parametrize("asked", ["medium", "onednn matmul short", "all shorter"], indirect=True)
def test_a_product_is_that_of_full_precision(asked):
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, 256, 256, generator=generator)
    with steady():
        product = one @ other
    torch.testing.assert_close(product, (one.double() @ other.double()).float(), atol=1e-4, rtol=0)


@anywhere
def test_a_network_may_switch_cudnn_off_inside(device):
    with steady(device), backends.cudnn.flags(enabled=False):
        assert not backends.cudnn.enabled


@pytest.mark.parametrize("own", [None, ":16:8"])
def test_cublas_is_given_the_workspace_it_needs_unless_it_has_one(own, monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    if own:
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", own)
    with steady("cuda"):
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == (own or ":4096:8")
    assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == own
    with steady():
        assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == own


def test_the_generator_of_the_device_is_seeded_and_left_as_it_was():
    with elsewhere() as device:
        torch.rand(5, device=device)
        here, there = torch.get_rng_state(), CHANCE.get_state()
        with forked(checked_device(device)):
            seeded(5, device)
            first = torch.rand(3, device=device).cpu()
            second = torch.rand(3, device=device).cpu()
            seeded(5, device)
            assert torch.equal(torch.rand(3, device=device).cpu(), first)
            assert not torch.equal(first, second)
        assert torch.equal(CHANCE.get_state(), there)
        assert torch.equal(torch.get_rng_state(), here)


def test_seeding_the_processor_leaves_the_device_alone():
    with elsewhere(), forked():
        there = CHANCE.get_state()
        seeded(5)
        assert torch.equal(CHANCE.get_state(), there)


@pytest.mark.parametrize("device", ["hpu", "xla", "", "cuda:-1"])
def test_a_device_that_torch_knows_by_name_only_is_one_clear_error(device):
    with pytest.raises(SpecError, match=f"--device {device}: expected a device that torch .* finds on this machine"):
        checked_device(device)
