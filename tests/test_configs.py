"""Every committed configuration parses, says how it is run in its first line, and builds a model that runs."""

from pathlib import Path

import pytest
import torch

from tttvideo.encoder import Timm, Transformers
from tttvideo.model import VideoModel
from tttvideo.training.arguments import parse

CONFIGS = sorted((Path(__file__).resolve().parents[1] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_configuration(file):
    first = file.read_text().splitlines()[0]
    assert first.startswith("#")
    assert f"train.py --config configs/{file.name}" in first or f"tttvideo train --config {file.stem}" in first
    config, _ = parse(["--config", str(file)])
    if isinstance(config.model.encoder, Timm | Transformers):
        return  # its weights come from the network
    torch.manual_seed(0)
    labels = ["a", "b"] if config.model.task.labelled else []
    model = VideoModel(config.model, preprocessing=config.data.preprocessing, labels=labels)
    frames = torch.randint(0, 256, (1, 2 * model.frame_multiple, 3, *config.data.size), dtype=torch.uint8)
    with torch.no_grad():
        output, _ = model(frames)
    assert output.timeline.shape[:2] == (1, 2)
    if not labels:
        assert output.timeline.shape[2:] == (model.encoder.stride, 3, *config.data.size)
        return
    assert output.logits.shape == (1, 2)
    assert output.timeline.shape == (1, 2, 2)


def test_studies_name_configurations_and_settings_that_exist():
    import yaml

    for file in (CONFIGS[0].parent / "study").glob("*.yaml"):
        study = yaml.safe_load(file.read_text())
        for experiment in study.get("experiments", {}).values():  # tests/test_design.py has the others
            config, found = str(CONFIGS[0].parents[1] / experiment["config"]), []
            for variant in study["variants"].values():
                plan = variant if isinstance(variant, dict) else {"settings": variant}
                words = [*plan["settings"], *experiment.get("settings", [])]
                found.append((parse(["--config", config, *words])[0], plan.get("folder"), plan.get("first")))
                if first := plan.get("first"):
                    # `init_from` takes encoder and backbone, which must be the same
                    pretrained = parse(["--config", config, *first["settings"]])[0]
                    assert pretrained.model.backbone == found[-1][0].model.backbone
            assert len({repr(each) for each in found}) == len(found)
