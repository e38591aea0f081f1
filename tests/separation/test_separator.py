"""What a separator promises of any clip: any length, no influence of company, parts that add up, chunks, the folder."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import offkey
from offkey.detector import DetectorError
from offkey.manifest import MANIFEST
from offkey.separation.config import LocoformerConfig, SeparatorConfig
from offkey.separation.separator import FORMAT, Separator, SeparatorError, add_up

NETWORK = LocoformerConfig(
    blocks=2, width=8, groups=2, heads=2, attention_width=8, hidden=(12, 12), frequency_stride=4, attention_frames=4
)
CONFIG = SeparatorConfig(rate=8000, locoformer=NETWORK, n_fft=64, hop=32)


def separator(config=CONFIG, seed=0):
    """One whose parts differ clearly: untrained outputs are near half of the clip each."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = Separator(config).eval().requires_grad_(False)
        made.network.exit.bias.normal_(0, 0.5)
        made.network.exit.weight.mul_(4)
    return made


def changed(**changes):
    return CONFIG.model_copy(update=changes)


VARIANTS = {
    "mask": CONFIG,
    "mapping": changed(output="mapping"),
    "overlap of three quarters": changed(n_fft=128),
    "one source": changed(locoformer=NETWORK.model_copy(update={"sources": 1})),
    "whole-clip attention": changed(locoformer=NETWORK.model_copy(update={"attention_frames": None})),
    "strided": changed(locoformer=NETWORK.model_copy(update={"stride": 2})),
    "contrast": changed(locoformer=NETWORK.model_copy(update={"contrast_frames": 7})),
}


def noise(*shape, seed=1):
    """(…, T) float32 as 16-bit recordings hold it, of changing loudness."""
    generator = np.random.default_rng(seed)
    loud = 0.05 * (1.2 + np.sin(np.arange(shape[-1]) / 700))
    return torch.from_numpy(np.round(generator.standard_normal(shape) * loud * 32768).astype(np.float32) / 32768)


def close(result, expected, bound=1e-5):
    assert result.shape == expected.shape
    assert np.abs(np.asarray(result) - np.asarray(expected)).max() <= bound * np.abs(np.asarray(expected)).max()


# ---- lengths, company, padding


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("samples", [1, 2, 31, 32, 33, 63, 64, 65, 1000])
def test_any_length(variant, samples):
    made, clip = separator(VARIANTS[variant]), noise(1, samples)
    parts = made(clip)
    assert parts.shape == (1, 2, samples)
    assert parts.dtype == torch.float32
    assert torch.equal(parts.sum(1), clip)
    assert parts[:, 0].any()


def test_a_minute():
    made, clip = separator(), noise(60 * 8000)
    parts = made.separate(clip.numpy(), chunk_seconds=100.0)
    assert parts.shape == (2, len(clip))
    assert np.array_equal(parts.sum(0), clip)


def test_no_samples_at_all():
    assert separator().separate(np.zeros(0, np.float32)).shape == (2, 0)
    assert separator()(torch.zeros(2, 0)).shape == (2, 2, 0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_company_and_padding_change_nothing(variant):
    made, clips = separator(VARIANTS[variant]), noise(6, 3000)
    lengths = torch.tensor([2000, 3000, 1, 0, 2001, 2990])
    padded = torch.where(torch.arange(3000) < lengths[:, None], clips, torch.nan)  # nobody's business
    parts = made(padded, lengths)
    for clip, length in enumerate(lengths.tolist()):
        assert not parts[clip, :, length:].any()
        if length:
            close(parts[clip, :, :length], made(clips[clip : clip + 1, :length])[0])


def test_full_lengths_are_no_lengths():
    made, clips = separator(), noise(3, 500)
    assert torch.equal(made(clips, torch.full((3,), 500)), made(clips))


def test_level_is_kept_and_does_not_matter():
    made, clip = separator(), noise(1, 2000)
    parts = made(clip)
    for factor in (2.0**-20, 2.0**6):
        close(made(clip * factor) / factor, parts, 1e-5)


def test_silence():
    made = separator()
    assert not made(torch.zeros(2, 500)).any()
    clips = torch.stack([torch.zeros(500), noise(500)])
    assert torch.isfinite(made(clips)).all()


def test_the_same_clip_gives_the_same_bits():
    clip = noise(2, 3000)
    assert torch.equal(separator()(clip), separator()(clip))


# ---- spectra


@pytest.mark.parametrize("variant", ["mask", "overlap of three quarters"])
def test_analysis_and_synthesis_undo_each_other(variant):
    made, clip = separator(VARIANTS[variant]), noise(2, 777)
    spectrum = made._analyse(clip, 0, made.frames(777))
    close(made._fit(made._synthesise(spectrum), 777), clip, 1e-6)


def test_frames_beside_numpy():
    made, clip = separator(), noise(1, 100)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(64) / 64)
    behind = np.concatenate([np.zeros(32), clip[0].numpy(), np.zeros(64)])
    expected = np.stack([np.fft.rfft(behind[32 * n : 32 * n + 64] * window) / 8 for n in range(5)])
    assert made.frames(100) == 5
    close(made._analyse(clip, 0, 5)[0], expected, 1e-6)
    close(made._analyse(clip, 2, 4)[0], expected[2:4], 1e-6)


def test_foreground_of_known_masks(monkeypatch):
    """Masks a and b give the mixture (1 + a − b) / 2 times; one mask alone gives it a times."""
    clip = noise(1, 500)
    for count, expected in ((2, 0.85), (1, 0.9)):
        network = NETWORK.model_copy(update={"sources": count})
        made = separator(changed(locoformer=network))
        masks = torch.tensor([0.9, 0.2])[:count, None, None]
        monkeypatch.setattr(
            made.network, "spectra", lambda x, _m=None, masks=masks: (masks + 0j).expand(1, -1, *x.shape[1:])
        )
        close(made(clip)[:, 0], expected * clip, 1e-5)
        made.config = changed(locoformer=network, output="mapping", compression=1.0)
        monkeypatch.setattr(made.network, "spectra", lambda x, _m=None, masks=masks: masks * x[:, None])
        close(made(clip)[:, 0], expected * clip, 1e-5)


# ---- parts that add up


@settings(max_examples=200, deadline=None)
@given(st.integers(-(2**23), 2**23), st.floats(-1.0, 1.0, width=32), st.integers(-20, 0))
def test_recordings_of_24_bits_add_up_bit_for_bit(sample, foreground, exponent):
    mixture = torch.tensor([[sample / 2**23]])
    parts = add_up(mixture, torch.tensor([[foreground * 2.0**exponent]]))
    assert torch.equal(parts[:, 0] + parts[:, 1], mixture)


def test_other_sound_adds_up_to_half_a_last_place_of_the_loudest():
    generator = torch.Generator().manual_seed(0)
    mixture, foreground = torch.randn(2, 1, 20000, generator=generator)
    parts = add_up(mixture, foreground)
    loudest = torch.stack([mixture, parts[:, 0], parts[:, 1]]).abs().amax(0)
    off = (parts.double().sum(1) - mixture).abs() / loudest
    assert off.max() <= 2**-24
    assert ((parts[:, 0] - foreground).abs() / loudest).max() <= 2**-23
    mild = foreground.abs().maximum(parts[:, 1].abs()) <= mixture.abs()
    assert torch.equal(parts.sum(1)[mild], mixture[mild])


def test_gradients_flow():
    made = separator().requires_grad_(True).train()
    clips = noise(2, 400).requires_grad_()
    (made(clips, torch.tensor([400, 300]))[:, 0] - 0.1).square().sum().backward()
    for name, weight in made.named_parameters():
        assert weight.grad is not None, name
        assert torch.isfinite(weight.grad).all(), name
        assert weight.grad.any(), name
    assert torch.isfinite(clips.grad).all()
    quiet = torch.zeros(1, 400, requires_grad=True)
    made(quiet).sum().backward()
    assert torch.isfinite(quiet.grad).all()


def test_a_step_lowers_the_loss():
    torch.manual_seed(0)
    made = Separator(CONFIG).train()
    tone = 0.2 * torch.sin(torch.arange(2000) / 3)[None]
    clips = tone + noise(1, 2000)
    optimiser = torch.optim.Adam(made.parameters(), 3e-3)
    losses = []
    for _ in range(15):
        loss = (made(clips)[:, 0] - tone).square().mean() / tone.square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


# ---- chunks


@pytest.mark.parametrize("variant", ["mask", "mapping", "overlap of three quarters", "strided", "contrast"])
@pytest.mark.parametrize("chunk_seconds", [0.4, 0.5, 0.77])
def test_chunks_make_the_whole(variant, chunk_seconds):
    made, clip = separator(VARIANTS[variant]), noise(16411)
    clip[9000:] *= 30  # the level and the first normalisation are the whole clip's
    whole = made(clip[None])[0]
    parts = made.separate(clip.numpy(), chunk_seconds)
    assert len(made._plan(made.frames(len(clip)), chunk_seconds, None)) > 2
    close(parts, whole, 2e-6)
    assert np.array_equal(parts.sum(0), clip)


def test_chunks_of_unbounded_attention_come_near():
    made, clip = separator(VARIANTS["whole-clip attention"]), noise(16411)
    whole = made(clip[None])[0]
    close(made.separate(clip.numpy(), 1.0), whole, 0.1)


def test_weights_of_overlapping_chunks_add_up():
    made = separator()
    for frames, seconds, overlap in ((400, 0.5, None), (401, 0.4, 0.2), (333, 0.3, 0.0), (1000, 1.0, 0.3)):
        plan = made._plan(frames, seconds, overlap)
        total = torch.zeros(frames)
        for chunk in plan:
            total[chunk.start : chunk.end] += chunk.weights(made.network.reach)
        close(total, torch.ones(frames), 1e-6)


def test_memory_does_not_grow_with_the_clip(monkeypatch):
    made, seen = separator(), []
    real = made.network.spectra
    monkeypatch.setattr(made.network, "spectra", lambda x, moments=None: seen.append(x.shape[1]) or real(x, moments))
    made.separate(noise(16411).numpy(), 0.5)
    assert len(seen) > 2
    assert max(seen) == 125  # frames of half a second


def test_separating_leaves_the_module_as_it_was():
    made = separator().train()
    clip = noise(5000).numpy()
    before = clip.copy()
    made.separate(clip, 0.4)
    assert made.training
    assert np.array_equal(clip, before)


def test_what_cannot_be_separated():
    made, clip = separator(), noise(5000).numpy()
    with pytest.raises(SeparatorError, match="mono"):
        made.separate(clip[None])
    with pytest.raises(SeparatorError, match="not finite"):
        made.separate(np.where(np.arange(5000) == 7, np.nan, clip))
    with pytest.raises(SeparatorError, match="chunk_seconds must be above 0"):
        made.separate(clip, 0.0)
    for overlap in (-0.1, 0.3):
        with pytest.raises(SeparatorError, match="half of chunk_seconds"):
            made.separate(clip, 0.4, overlap)


# ---- settings and the folder


@pytest.mark.parametrize(
    "wrong", [{"n_fft": 65}, {"hop": 30}, {"hop": 64}, {"locoformer": {"sources": 3}}, {"window": "hann"}]
)
def test_settings_that_do_not_fit(wrong):
    with pytest.raises(ValueError, match=r"n_fft|sources|window"):
        SeparatorConfig.model_validate({"n_fft": 64, "hop": 32} | wrong)


def test_settings_of_before_knew_no_contrast():
    told = CONFIG.model_dump(mode="json")
    del told["locoformer"]["contrast_frames"]
    assert SeparatorConfig.model_validate(told) == CONFIG


def test_tiny_alone_hears_contrast():
    heard = {size: SeparatorConfig.of(size).locoformer.contrast_frames for size in ("tiny", "small", "medium")}
    assert heard == {"tiny": 15, "small": None, "medium": None}
    assert SeparatorConfig() == SeparatorConfig.of("tiny")
    assert SeparatorConfig.of("tiny", rate=32000).locoformer.contrast_frames == 31


def test_settings_load_no_torch():
    code = "import sys, offkey.separation.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return separator().save(tmp_path_factory.mktemp("separator") / "s")


@pytest.fixture
def copied(kept, tmp_path):
    return shutil.copytree(kept, tmp_path / "copy")


def test_saved_and_loaded(kept):
    made, clip = Separator.load(kept), noise(3000)
    assert torch.equal(made(clip[None]), separator()(clip[None]))
    assert made.config == CONFIG
    assert not made.training
    assert made.fingerprint() == separator().fingerprint()
    assert {path.name for path in kept.iterdir()} == {"config.json", "model.safetensors", MANIFEST}


def test_fingerprint_tells_weights_and_settings_apart():
    prints = {
        separator().fingerprint(),
        separator(seed=1).fingerprint(),
        separator(changed(rate=16000)).fingerprint(),
        separator(changed(output="mapping")).fingerprint(),
    }
    assert len(prints) == 4


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("where", [0.0, 0.5, 1.0])
def test_one_changed_byte_is_refused(copied, name, where):
    content = bytearray((copied / name).read_bytes())
    content[round(where * (len(content) - 1))] ^= 1
    (copied / name).write_bytes(content)
    with pytest.raises(SeparatorError, match=rf"{name}.*its hash differs.*fit the separator again"):
        Separator.load(copied)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_refused(copied, name):
    (copied / name).unlink()
    with pytest.raises(SeparatorError, match=rf"{name} is missing.*copy the whole folder"):
        Separator.load(copied)


def test_a_folder_without_a_separator_is_refused(tmp_path):
    with pytest.raises(SeparatorError, match=r"holds no finished separator.*fit-separator"):
        Separator.load(tmp_path)
    with pytest.raises(SeparatorError, match="is not a folder"):
        Separator.load(tmp_path / "nowhere")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1, "files": {}}', '{"format": 1, "files": {"x": 7}}'])
def test_a_damaged_manifest_is_refused(copied, text):
    (copied / MANIFEST).write_text(text)
    with pytest.raises(SeparatorError, match=r"manifest.json is damaged.*fit the separator again"):
        Separator.load(copied)


@pytest.mark.parametrize("told", [True, False])  # whether the manifest says its kind, as older ones did not
def test_a_folder_of_another_kind_is_called_by_its_name(copied, fitted, tmp_path, told):
    place = shutil.copytree(fitted("loudness").folder, tmp_path / "detector")
    for folder, held in ((place, "detector"), (copied, "separator")):
        manifest = json.loads((folder / MANIFEST).read_text())
        assert manifest["kind"] == held
        if not told:
            del manifest["kind"]
            (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(SeparatorError, match=r"holds a detector, not a separator: .*offkey fit-separator"):
        Separator.load(place)
    with pytest.raises(DetectorError, match=r"holds a separator, not a detector: .*offkey fit SOURCE"):
        offkey.load(copied)
    assert offkey.load(place).machines


def test_a_newer_format_is_refused(copied):
    manifest = json.loads((copied / MANIFEST).read_text())
    (copied / MANIFEST).write_text(json.dumps(manifest | {"format": FORMAT + 1}))
    with pytest.raises(SeparatorError, match=rf"newer offkey \(format {FORMAT + 1}.*update offkey"):
        Separator.load(copied)


def test_settings_that_do_not_match_the_weights_are_refused(copied):
    from offkey.files import sha256

    path = copied / "config.json"
    path.write_text(path.read_text().replace('"width": 8', '"width": 16', 1))
    manifest = json.loads((copied / MANIFEST).read_text())
    manifest["files"]["config.json"] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    (copied / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(SeparatorError, match="the separator is damaged"):
        Separator.load(copied)


def test_compression_changes_what_is_heard_and_not_what_is_taken_apart() -> None:
    """The sum stays exact, the level does not matter, and chunks agree with the whole."""
    config = SeparatorConfig.of("tiny", compression=0.3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        separator, plain = Separator(config).eval(), Separator(SeparatorConfig.of("tiny", compression=1.0)).eval()
    plain.load_state_dict(separator.state_dict())
    wave = np.round(3000 * np.random.default_rng(0).standard_normal(16000 * 9)).astype(np.float32) / 32768
    whole = separator.separate(wave)
    np.testing.assert_array_equal(whole.sum(0), wave)
    assert np.abs(whole - plain.separate(wave)).max() > 1e-3
    np.testing.assert_allclose(separator.separate(4 * wave), 4 * whole, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(separator.separate(wave, chunk_seconds=5.0), whole, atol=1e-5)
