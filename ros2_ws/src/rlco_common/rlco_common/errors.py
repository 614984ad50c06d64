"""Named errors of the stack. Every message says what is wrong, where, and how to fix it."""


class RlcoError(Exception):
    """Base of every error that the stack raises on purpose."""


class ConfigError(RlcoError):
    """A configuration file or override has an unknown, missing or invalid field."""


class ContractMismatch(RlcoError):
    """Two artefacts (bag, dataset, checkpoint, run) were made under different contracts."""


class DataError(RlcoError):
    """A bag, dataset or checkpoint is unreadable, incomplete or inconsistent."""


class TwinError(RlcoError):
    """The simulator cannot do what was asked: no renderer, unknown task or domain, dead worker."""


class TrainingError(RlcoError):
    """Training cannot start or go on: no initial success, non-finite loss, missing data."""


class ProcessError(RlcoError):
    """A process of a session died or cannot be started."""


class RecordingError(RlcoError):
    """A recording cannot start, or a part of it could not be written."""


class PolicyServerError(RlcoError):
    """A policy server cannot be reached, does not answer in time, or does not serve what this robot needs."""
