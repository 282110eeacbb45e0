"""Errors and warnings for videos that cannot be used, or only in part. Imports nothing: indexing starts at once."""


class VideoError(ValueError):
    """A video (or folder of images) that cannot be used; the message is one sentence with the path and the
    reason.
    """


class VideoWarning(UserWarning):
    """Something about a video that its user should know; given once per file and process."""


class PartialVideoWarning(VideoWarning):
    """A damaged video: only its first frames decode, with both counts, or some of its frames are damaged."""
