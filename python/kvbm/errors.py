# SPDX-License-Identifier: Apache-2.0
"""What kvbm raises: Error and a subclass for each code of docs/errors.md.

The classes say what to do next; the message is for people. A mistake in the program itself, such as a block used after it
was released, is a kvbm.ContractViolation.
"""

import builtins


class Error(Exception):
    """What went wrong."""

    code: str = ""


class InvalidArgumentError(Error, ValueError):
    """A value or a combination makes no sense: mend the request."""

    code = "invalid_argument"


class NotFoundError(Error):
    """The named thing does not exist: create it, or take it for a miss."""

    code = "not_found"


class ExhaustedError(Error):
    """No room now: free some, or try later."""

    code = "exhausted"


class RejectedError(Error):
    """A policy refused: go on without it."""

    code = "rejected"


class UnavailableError(Error):
    """It is stopped or gone: do without it."""

    code = "unavailable"


class TimeoutError(Error, builtins.TimeoutError):
    """The deadline passed: the operation goes on, and may still touch what it was given."""

    code = "timeout"


class CancelledError(Error):
    """Stopped on request, or at shutdown."""

    code = "cancelled"


class IoError(Error):
    """A file operation failed: retry elsewhere."""

    code = "io"


class DeviceError(Error):
    """The accelerator failed: its context may be lost."""

    code = "device"


class CorruptError(Error):
    """Bytes are not what was written: drop them, take it for a miss."""

    code = "corrupt"


class UnsupportedError(Error):
    """This version, device, file or process cannot: choose another way."""

    code = "unsupported"


class InternalError(Error):
    """A defect of kvbm: report it."""

    code = "internal"
