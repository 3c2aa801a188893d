"""What signals mean while something runs."""

import signal
from collections.abc import Iterator

import pytest

from unmask.interrupts import interruptible


class Work:
    def __init__(self) -> None:
        self.told: list[str] = []

    def drain(self) -> None:
        self.told.append("drain")

    def stop_now(self) -> None:
        self.told.append("stop")


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_each_drains(number: signal.Signals, capfd: pytest.CaptureFixture[str]) -> None:
    work, before = Work(), signal.getsignal(number)
    with interruptible(work, "stopping") as came:
        signal.raise_signal(number)
    assert work.told == ["drain"]
    assert came == [number]
    assert capfd.readouterr().err == "stopping\n"
    assert signal.getsignal(number) is before


def test_second_one_stops_and_a_closed_terminal_never_does() -> None:
    work = Work()
    with interruptible(work) as came:
        for number in (signal.SIGHUP, signal.SIGHUP, signal.SIGTERM):
            signal.raise_signal(number)
    assert work.told == ["drain", "stop"]
    assert came == [signal.SIGHUP, signal.SIGTERM]


def test_nohup_is_heeded() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    work = Work()
    with interruptible(work):
        signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    assert work.told == []
