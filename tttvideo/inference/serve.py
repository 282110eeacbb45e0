"""`tttvideo serve`: a page on which people give a video to models and see what they make of it."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from ..evaluation.report import templates
from ..model import VideoModel
from ..pretrained import from_pretrained
from ..printing import printable, sentence
from ..video.segments import ahead
from .config import ServeConfig
from .files import device
from .panel import Panel, check_model, panels_of, read_side_by_side
from .sources import find_videos

EXAMPLES = 12
"""Examples that are offered, at most."""

PAUSE = 0.4
"""Seconds between two states of the page, at least."""

KEPT = 3600
"""Seconds after which an uploaded file is deleted."""


def serve(config: ServeConfig) -> int:
    """Shows the page until Ctrl-C.

    Returns:
        the exit code.

    Raises:
        ValueError: without Gradio; for checkpoints, examples or an address that cannot be used.
    """
    try:
        import gradio  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise ValueError(f"the page needs the package {error.name}; pip install 'tttvideo[serve]'") from None
    models = Answers(load(config), config.max_seconds)
    page = build(gradio, config, models)
    try:
        _, address, public = page.launch(
            server_name=config.host,
            server_port=config.port,
            share=config.share,
            max_file_size=int(config.max_upload * 1e6),
            prevent_thread_lock=True,
            quiet=True,
            ssr_mode=False,
            footer_links=[],
            run_history=False,
            theme=gradio.themes.Default(font="system-ui", font_mono="monospace"),
        )
    except OSError:
        raise ValueError(f"{config.host} port {config.port} is in use or not of this machine; give --port") from None
    print(printable(f"{', '.join(models.models)}: {public or address} (Ctrl-C ends)"), flush=True)
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        return 0
    finally:
        page.close(verbose=False)


def load(config: ServeConfig) -> dict[str, VideoModel]:
    """The models by the name of their folder, or by the whole path where two have one name."""
    names = [Path(word).resolve().name for word in config.models]
    if len(set(names)) < len(names):
        names = list(config.models)
    if len(set(names)) < len(names):
        raise ValueError("the same model is given twice; give each once")
    models = {}
    for name, word in zip(names, config.models, strict=True):
        models[name] = from_pretrained(word, trust=config.trust).to(device(config.device, 0)).eval()
        check_model(word, models[name])
    return models


class Answers:
    """What the page says of a video.

    Args:
        models: by name.
        longest: seconds of a video that are read.
    """

    def __init__(self, models: dict[str, VideoModel], longest: float):
        self.models, self.longest = models, longest
        self._decoding = threading.Lock()
        self._template = templates(Path(__file__).parent).get_template("panels.html.jinja")

    @staticmethod
    def want(path: str | None, wanted: list[str | None]) -> None:
        """Notes what a visitor wants now: ``of`` stops reading anything else."""
        wanted[:] = [path]

    def of(self, path: str | None, wanted: Sequence[str | None] = ()) -> Iterator[str]:
        """The page's HTML as it grows; of a file that cannot be used, one sentence."""
        if path is None:
            yield self.html()
            return
        try:
            with closing(ahead(self._read(path))) as pages:  # type: ignore[type-var]  # generators
                for page in pages:
                    yield page
                    if wanted and wanted[0] != path:
                        return
        except (ValueError, OSError) as error:
            print(printable(f"refused: {sentence(error)}"), file=sys.stderr)
            # its sender does not know the folder that it lies in
            yield self.html(refused=sentence(error).replace(path, Path(path).name))

    def _read(self, path: str) -> Iterator[str]:
        panels = panels_of(self.models, path, self.longest)
        rendered = 0.0
        for _ in read_side_by_side(panels, self._decoding):
            if time.monotonic() - rendered >= PAUSE and all(panel.frames for panel in panels):
                yield self.html(panels)
                rendered = time.monotonic()
        yield self.html(panels, done=True)

    def html(self, panels: list[Panel] | tuple[()] = (), *, done: bool = False, refused: str = "") -> str:
        hint = f"Answers appear here while a video of up to {self.longest / 60:.3g} minutes is read."
        return self._template.render(panels=panels, done=done, refused=refused, hint=hint)


def build(gradio: Any, config: ServeConfig, answers: Answers) -> Any:
    """The page: at the left a video, at the right what the models say of it; below each other on a phone."""
    examples = [video.path for video in find_videos(config.examples) if not Path(video.path).is_dir()]
    examples = examples[:: -(-len(examples) // EXAMPLES) or 1]
    for path in examples:
        if not Path(path).is_file():
            raise ValueError(f"the example {path} does not exist")
    with gradio.Blocks(title="tttvideo", analytics_enabled=False, delete_cache=(KEPT // 6, KEPT)) as page:
        with gradio.Row():
            with gradio.Column(scale=2, min_width=300):
                video = gradio.Video(label=f"A video, up to {config.max_upload:g} MB")
            with gradio.Column(scale=3, min_width=300):
                below = gradio.HTML(answers.html())
        if examples:  # last: on a phone the answers are right below the video
            gradio.Examples(examples, video, examples_per_page=EXAMPLES)
        wanted = gradio.State([])
        change = video.change(
            answers.want, [video, wanted], None, queue=False, trigger_mode="multiple", api_visibility="private"
        )
        change.then(
            answers.of,
            [video, wanted],
            below,
            concurrency_limit=config.concurrency,
            trigger_mode="multiple",
            show_progress="hidden",
            api_visibility="private",
        )
    return page.queue(max_size=config.queue, api_open=False)
