"""One evaluation, whatever the task: a model that generates frames is measured by what it generates, any other by what
it says of the videos that it reads."""

from __future__ import annotations

from ..measuring import EvaluateConfig
from . import generating, reading
from .session import open_checkpoint, open_session
from .table import Result


def evaluate(config: EvaluateConfig, progress: bool = False) -> Result | None:
    """Measures a checkpoint; ``print_report`` and ``write_report`` take the result, which is None on all processes but
    the first.

    Args:
        progress: show a progress bar.

    Raises:
        ValueError: with one sentence for a missing checkpoint or split, for labels the checkpoint does not know, and
            for settings that cannot be. Videos that cannot be read are results, not errors.
    """
    from ..video.reading import damaged_videos_named

    with damaged_videos_named():
        opened = open_checkpoint(config.checkpoint, device=config.device, trust=config.trust)
        generates = opened.model.head.generated is not None
        of_reading, of_generating = config.groups.values()
        foreign = of_reading if generates else of_generating
        if option := next((name for name in config.given() if name in foreign), None):
            option, task = option.replace("_", "-"), opened.source.task
            raise ValueError(f"--{option} does not go with a checkpoint trained for {task}; leave it out")
        session = open_session(opened, config.data, split=config.split, root=config.root)
        return (generating.generate_videos if generates else reading.read_videos)(session, config, progress)
