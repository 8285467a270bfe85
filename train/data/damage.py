"""The error for prepared data that is not what was prepared."""


class DamagedDataError(RuntimeError):
    """What is read of the prepared data is not what was prepared; the message names the file and what to do."""
