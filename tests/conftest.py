"""Options and fixtures that several folders of tests share."""

import signal

import pytest

from tests import peers
from tests.experiment.fixtures import _tiny, copied, made, order, tiny, tiny_file, trials  # noqa: F401


def pytest_configure() -> None:
    peers.let_torchvision_be_imported()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's '&' has it ignored; some tests interrupt


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden", action="store_true", help="write the golden files anew")
