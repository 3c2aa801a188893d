"""One network for several callers: what waits at the same time goes through it in one call."""

from collections.abc import Sequence
from threading import Condition
from typing import Final

import numpy as np

from unmask.models.engine import U8, Engine

MOST_AT_ONCE: Final = 16
"""Crops in one call: a GPU gains little beyond, and the first caller would wait for the last."""


class _Ticket:
    """What one caller gave, and what it is to get."""

    def __init__(self, inputs: tuple[U8, ...]) -> None:
        self.inputs = inputs
        self.result: U8 | None = None
        self.error: Exception | None = None

    @property
    def is_done(self) -> bool:
        return self.result is not None or self.error is not None


class BatchingEngine(Engine):
    """An engine that several threads may call.

    A caller that finds the engine free runs it at once. Those that come meanwhile wait, and whoever is next takes what
    all of them gave along in one batch. Results are copies and stay valid.

    Args:
        engine: called by one thread at a time.
    """

    def __init__(self, engine: Engine) -> None:
        self.description = engine.description
        self._engine = engine
        self._changed = Condition()
        self._waiting: list[_Ticket] = []
        self._is_busy = False

    def __call__(self, *inputs: U8) -> U8:
        ticket = _Ticket(inputs)
        with self._changed:
            self._waiting.append(ticket)
        while batch := self._turn(ticket):
            self._run(batch)
        if ticket.error is not None:
            raise ticket.error
        assert ticket.result is not None
        return ticket.result

    def _turn(self, ticket: _Ticket) -> list[_Ticket]:
        """Wait until the ticket is done (nothing is returned) or the engine free: then what to run next."""
        with self._changed:
            self._changed.wait_for(lambda: ticket.is_done or not self._is_busy)
            if ticket.is_done:
                return []
            self._is_busy = True
            batch = [self._waiting.pop(0)]
            while self._waiting and sum(len(t.inputs[0]) for t in (*batch, self._waiting[0])) <= MOST_AT_ONCE:
                batch.append(self._waiting.pop(0))
            return batch

    def _run(self, batch: Sequence[_Ticket]) -> None:
        results: list[U8] = []
        error: Exception | None = None
        try:
            if len(batch) == 1:
                results = [self._engine(*batch[0].inputs).copy()]
            else:
                columns = zip(*(ticket.inputs for ticket in batch), strict=True)
                together = self._engine(*(np.concatenate(column) for column in columns))
                ends = np.cumsum([len(ticket.inputs[0]) for ticket in batch])[:-1]
                results = [part.copy() for part in np.split(together, ends)]
        except Exception as raised:
            error = raised
        with self._changed:
            for position, ticket in enumerate(batch):
                ticket.result, ticket.error = (None, error) if error else (results[position], None)
            self._is_busy = False
            self._changed.notify_all()
