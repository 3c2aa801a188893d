"""Every error that unmask raises on purpose, and the exit code that each one ends the program with.

UnmaskError            1   base class
├── UserError          2   what the user gave cannot be used; the message is one line that says what to do
├── StageError         1   a stage of the pipeline failed or died while running
├── EngineError        1   a network could not be loaded, or does not match its reference
├── NoAnswerError      1   `unmask serve` did not answer a client in time
└── RefusedError       1   `unmask serve` refused what a client sent
"""


class UnmaskError(Exception):
    """Base class. The message is one line, written for the user, without a traceback."""

    exit_code = 1


class UserError(UnmaskError):
    """The input, the output or an option cannot be used. The message says what to do about it."""

    exit_code = 2


class StageError(UnmaskError):
    """A stage failed while running.

    Args:
        stage: name of the stage.
        reason: one line.
        detail: the traceback, for a log; empty where there is none.
    """

    def __init__(self, stage: str, reason: str, detail: str = "") -> None:
        super().__init__(f"stage '{stage}' failed: {reason}")
        self.stage = stage
        self.reason = reason
        self.detail = detail


class EngineError(UnmaskError):
    """A network could not be loaded or run."""


class NoAnswerError(UnmaskError):
    """A server did not answer in time. The message says what to look at."""


class RefusedError(UnmaskError):
    """A server refused a frame or a client.

    Args:
        text: what the server said, one line.
        code: the same for programs; docs/protocol.md lists them.
    """

    def __init__(self, text: str, code: str) -> None:
        super().__init__(f"the server refused: {text}")
        self.code = code
