"""A look inside: recording changes no answer, its figures are those of the definition, and the report says them."""

import json

import numpy as np
import pytest
import torch

import tttvideo
from tests.evaluation.small import noise_video, small_model, small_run
from tests.helpers import ALL_INNER, name, video_model
from tttvideo.cli import main
from tttvideo.encoder import Features
from tttvideo.inspection.costs import costs, total
from tttvideo.inspection.recording import pieces_of, record
from tttvideo.inspection.report import FIGURES
from tttvideo.mixers import LSTM, TTT, Bidirectional
from tttvideo.ttt import FrameCausal, Layout, Linear, Muon, TokenCausal, Whole

CLIP = torch.randint(0, 256, (70, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def recorded(model, clip=CLIP):
    for _, output, records in record(model, pieces_of(model, clip)):  # noqa: B007
        pass
    return output, records


@pytest.mark.parametrize(
    ("mixer", "updates"),
    [
        *((TTT(inner=inner), 70) for inner in ALL_INNER),
        (TTT(chunk=TokenCausal(16)), 17),  # 280 tokens: the last half of a chunk is open
        (TTT(chunk=FrameCausal(3)), 23),
        (TTT(chunk=Whole(None)), 1),
        (TTT(optimizer=Muon(), forget=True, views=2), 70),
    ],
    ids=lambda value: name(value) if isinstance(value, TTT) else "",
)
def test_recording_changes_no_answer(mixer, updates):
    model = small_model(mixer=mixer)
    with torch.no_grad():
        expected = model(CLIP[None])[0].logits
    output, (own,) = recorded(model)
    torch.testing.assert_close(output.logits, expected, rtol=1e-4, atol=1e-4)
    assert own.inner_loss.before.shape == own.steps.shape == (updates, 4)
    assert own.rates.shape == (70, 2, 2)
    assert 0 < float(own.rates.min()) <= float(own.rates.max()) < 1
    assert all(bool(part.isfinite().all()) for part in own.probes)
    assert not model.backbone.blocks[0].mixer._forward_hooks


def test_the_figures_are_those_of_the_definition():
    """Linear, one frame a chunk: loss 1/2 |k + LN(k W + b) - v|^2, from the projections."""
    model = small_model(mixer=TTT(inner=Linear(), heads=2, rope=False)).double()
    layer, block = model.backbone.blocks[0].mixer, model.backbone.blocks[0]
    _, (own,) = recorded(model, CLIP[:3])
    with torch.no_grad():
        tokens, _, _ = model.encoder(CLIP[None, :1], None, model.init_state(1).encoder)
        x = block.mixer_norm(tokens.flatten(1, 2))
        k, v = (p(x).unflatten(-1, (2, -1)).transpose(1, 2) for p in (layer.project.k_proj, layer.project.v_proj))
        before = layer.init_state(1)
        _, after = layer(x, before, Layout((2, 2)))
        for state, losses in ((before, own.inner_loss.before), (after, own.inner_loss.after)):
            weight, bias = state.weights["1"]
            z = torch.nn.functional.layer_norm(k @ weight + bias, (16,), eps=1e-6)
            error = k + layer.norm_shift + layer.norm_scale * z - v
            torch.testing.assert_close(losses[0], 0.5 * error.square().sum(-1).mean(-1)[0])
        moved = [(b - a).square().sum((-1, -2)) for a, b in zip(before.weights["1"], after.weights["1"], strict=True)]
        torch.testing.assert_close(own.steps[0], sum(moved)[0].sqrt())
        torch.testing.assert_close(own.distances[0], own.steps[0])
        torch.testing.assert_close(own.rates[0].flatten(), torch.sigmoid(layer.project.rate(x)).mean(-1)[0].float())
    assert own.inner_loss.frames.tolist() == [1, 2, 3]


def test_probes_end_where_they_began_if_nothing_follows():
    _, (own,) = recorded(small_model(), CLIP[:1])
    probes = own.probes
    torch.testing.assert_close(probes.then, probes.end)
    torch.testing.assert_close(probes.similarity, torch.ones(1))


def test_a_bidirectional_layer_is_recorded_from_both_ends_and_one_without_ttt_is_refused():
    for share in (False, True):
        losses = tttvideo.inner_loss(small_model(mixer=Bidirectional(TTT(), share=share)), CLIP[:9])
        assert len(losses) == 2
        assert all(own.before.shape == (9, 4) for own in losses.values())
        assert sum("from the end" in called for called in losses) == 1
    with pytest.raises(ValueError, match="This model has no TTT layer"):
        tttvideo.inner_loss(small_model(mixer=LSTM()), CLIP)


def test_costs_add_up():
    model = small_model()
    parts = costs(model)
    every = total(parts)
    assert every.parameters == sum(p.numel() for p in model.parameters())
    encoder = parts[0]
    assert encoder.flops == 2 * 4 * (3 * 16 * 16) * 32  # four patches of 16 x 16
    feed_forward = parts[2]
    assert feed_forward.flops == 2 * 4 * 3 * 32 * 64
    assert parts[1].state_bytes > 4 * sum(p.numel() for p in model.backbone.blocks[0].mixer.weights.values())


def test_the_command(tmp_path, capsys):
    run, video = small_run(tmp_path / "run", small_model()), noise_video(tmp_path / "a<b>.mp4", 40)
    assert main(["inspect", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[-1]["name"] == "all"
    out = tmp_path / "out"
    assert main(["inspect", str(run), str(video), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "block 1: an update takes the inner loss of its chunk from" in said
    assert {file.name for file in out.iterdir()} == {"inspection.html", "inspection.json", *FIGURES}
    assert all((out / figure).read_bytes().startswith(b"\x89PNG") for figure in FIGURES)
    page = (out / "inspection.html").read_text()
    assert page.count("data:image/png") == len(FIGURES)
    assert "a&lt;b&gt;.mp4, 40 frames" in page
    numbers = json.loads((out / "inspection.json").read_text())["layers"]["block 1"]
    losses = tttvideo.inner_loss(tttvideo.from_pretrained(run), video)["block 1"]
    assert numbers["loss_after"] == pytest.approx(losses.after.mean(1).tolist())
    assert np.all(np.diff(numbers["seconds"]) > 0)

    def refused(*words):
        assert main(["inspect", str(run), *map(str, words)]) == 2
        return capsys.readouterr().err

    def refused_by(model):
        other = small_run(tmp_path / "other", model)
        assert main(["inspect", str(other), str(video), "--out", str(out)]) == 2
        return capsys.readouterr().err

    assert "looks at one video, got 2" in refused(video, video)
    assert "give one: tttvideo inspect MODEL VIDEO" in refused("--frames", "3")
    assert "its 40 frames do not fill a chunk of this model" in refused_by(
        small_model(mixer=TTT(chunk=FrameCausal(41)))
    )
    (tmp_path / "text.mp4").write_text("no video")
    assert "text.mp4" in refused(tmp_path / "text.mp4", "--out", out)
    assert json.loads((out / "inspection.json").read_text())["layers"]["block 1"] == numbers


def test_costs_of_a_model_that_reads_features():
    """It reads no pixels, and its encoder is a map alone."""
    model = video_model(encoder=Features(channels=12, layout="TD"), depth=1)
    parts = costs(model)
    assert total(parts).parameters == sum(p.numel() for p in model.parameters())
    assert parts[1].flops > 0
