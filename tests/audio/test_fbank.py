import importlib.util
import math
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from offkey.audio import fbank
from offkey.audio.fbank import ClipTooShortError, kaldi_fbank, mel_bank
from offkey.types import OffkeyError

GOLDEN = Path(__file__).parents[1] / "encoders" / "beats_golden"


def golden_script():
    spec = importlib.util.spec_from_file_location("beats_golden_make", GOLDEN / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def by_definition(clip):
    """One clip (T,), one step of Kaldi's recipe a line."""
    window = torch.hann_window(400, periodic=False).pow(0.85)
    frame = torch.stack([clip[start : start + 400] for start in range(0, clip.numel() - 399, 160)])
    frame = frame - torch.mean(frame, dim=1).unsqueeze(1)
    before = torch.nn.functional.pad(frame.unsqueeze(0), (1, 0), mode="replicate").squeeze(0)[:, :-1]
    frame = frame - 0.97 * before
    frame = frame * window.unsqueeze(0)
    frame = torch.nn.functional.pad(frame, (0, 112))
    power = torch.fft.rfft(frame).abs().pow(2.0)
    energy = torch.mm(power, mel_bank().T)
    return torch.max(energy, torch.tensor(torch.finfo(torch.float).eps)).log()


def signals(clips, samples, seed=0):
    noise = torch.randn(clips, samples, generator=torch.Generator().manual_seed(seed))
    time = torch.arange(samples) / 16000
    return {
        "noise": noise * 3000,
        "faint": noise * 1e-3,
        "clipped": (noise * 1e5).clamp(-32768, 32767),
        "tone": (20000 * torch.sin(2 * torch.pi * 1000 * time)).repeat(clips, 1),
        "silence": torch.zeros(clips, samples),
        "constant": torch.full((clips, samples), 1e4),
    }


@pytest.mark.parametrize(
    ("clips", "samples"), [(1, 400), (3, 719), (2, 720), (2, 880), (4, 2000), (8, 16000), (3, 90123), (1, 160000)]
)
def test_every_bit_is_that_of_the_definition_clip_by_clip(clips, samples):
    for name, waveform in signals(clips, samples).items():
        expected = torch.stack([by_definition(clip) for clip in waveform])
        assert torch.equal(kaldi_fbank(waveform), expected), name


@settings(max_examples=25, deadline=None)
@given(samples=st.integers(400, 20000), clips=st.integers(1, 4), seed=st.integers(0, 99))
def test_every_bit_at_any_length(samples, clips, seed):
    waveform = signals(clips, samples, seed)["noise"]
    assert torch.equal(kaldi_fbank(waveform), torch.stack([by_definition(clip) for clip in waveform]))


def test_the_way_of_accelerators_and_gradients_has_the_same_bits():
    waveform = signals(3, 50000)["noise"]
    assert torch.equal(fbank._at_once(waveform), kaldi_fbank(waveform))
    learning = waveform.clone().requires_grad_()
    result = kaldi_fbank(learning)
    assert torch.equal(result, kaldi_fbank(waveform))
    result.sum().backward()
    assert learning.grad.abs().sum() > 0


def test_bits_do_not_hang_on_leaving_out_zeros(monkeypatch):
    waveform = signals(2, 30000)["noise"]
    quick = kaldi_fbank(waveform)
    monkeypatch.setattr(fbank, "_parts_agree", lambda rows, threads: False)
    assert torch.equal(kaldi_fbank(waveform), quick)


def test_product_by_parts_is_refused_where_the_library_adds_in_another_order(monkeypatch):
    fbank._parts_agree.cache_clear()
    monkeypatch.setattr(fbank, "_sum_parts", lambda power, out: out.copy_(power.double() @ mel_bank().double().T))
    assert not fbank._parts_agree(500, 1)
    fbank._parts_agree.cache_clear()


def test_numbers_are_those_of_torchaudio():
    script = golden_script()
    expected = load_file(script.PLACE)["out.kaldi"]
    result = kaldi_fbank(script.waveform(7, 16000)[None] * 2**15)[0]
    # another processor rounds its transforms otherwise, and a logarithm magnifies that where hardly anything sounds
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-3)
    assert (result - expected).abs().mean() < 1e-5


def test_every_bit_is_that_of_torchaudio():
    path = os.environ.get("OFFKEY_KALDI_REFERENCE")
    if not path:
        pytest.skip("OFFKEY_KALDI_REFERENCE does not name torchaudio's kaldi.py")
    with golden_script().kaldi(path) as kaldi:
        for samples in (400, 881, 16000, 160000, 960000):
            for name, waveform in signals(2, samples).items():
                expected = torch.stack(
                    [kaldi.fbank(clip[None], num_mel_bins=128, sample_frequency=16000) for clip in waveform]
                )
                assert torch.equal(kaldi_fbank(waveform), expected), (samples, name)
                assert torch.equal(fbank._at_once(waveform), expected), (samples, name)


def test_a_tone_sounds_in_its_own_band():
    # 1000 Hz is 1000 mel, and the bands lie evenly between 20 and 8000 Hz in mel
    waveform = signals(1, 16000)["tone"]
    loudest = kaldi_fbank(waveform)[0].mean(0).argmax()
    mel = torch.linspace(31.75, 2840.04, 130)[1:-1]
    assert abs(int(loudest) - int((mel - 1000.0).abs().argmin())) <= 1


def test_silence_lies_at_the_floor():
    assert torch.equal(kaldi_fbank(torch.zeros(1, 400)), torch.full((1, 1, 128), 2.0**-23).log())


def test_frames_are_those_of_the_result():
    lengths = torch.tensor([400, 559, 560, 16000, 160000])
    assert fbank.frames(lengths).tolist() == [kaldi_fbank(torch.zeros(1, int(n))).shape[1] for n in lengths]
    assert fbank.frames(torch.tensor([0, 399])).tolist() == [0, 0]


def test_padding_leaves_own_frames_alone():
    clip = signals(1, 9000)["noise"]
    padded = torch.cat([clip, torch.full((1, 5000), torch.nan)], 1)
    own = kaldi_fbank(clip)
    torch.testing.assert_close(kaldi_fbank(padded)[:, : own.shape[1]], own, rtol=1e-6, atol=1e-5)


def test_autocast_changes_nothing():
    waveform = signals(2, 16000)["noise"]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(kaldi_fbank(waveform), kaldi_fbank(waveform.clone()))
        inside = kaldi_fbank(waveform)
    assert torch.equal(inside, kaldi_fbank(waveform))


def test_constants_first_made_in_inference_mode_serve_gradients():
    fbank._constants.cache_clear()
    fbank._parts.cache_clear()
    with torch.inference_mode():
        kaldi_fbank(torch.ones(1, 800))
    kaldi_fbank(torch.ones(1, 800, requires_grad=True)).sum().backward()


def test_what_is_shorter_than_a_frame_is_refused():
    with pytest.raises(ClipTooShortError, match="399 samples"):
        kaldi_fbank(torch.zeros(2, 399))
    assert issubclass(ClipTooShortError, OffkeyError)


def test_a_tone_lies_in_the_filter_that_its_place_in_the_span_says():
    low, high = (1127.0 * math.log1p(hertz / 700.0) for hertz in fbank.SPAN)
    seconds = torch.arange(fbank.RATE) / fbank.RATE
    for part in (0.4, 0.6, 0.9):
        hertz = 700.0 * math.expm1((low + part * (high - low)) / 1127.0)
        heard = kaldi_fbank(torch.sin(2 * math.pi * hertz * seconds)[None])[0]
        assert abs(int(heard.mean(0).argmax()) - part * heard.shape[1]) <= 1
