"""Networks on waveforms and spectrograms."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.subject import Example


class Waveform(nn.Sequential):
    """Strided 1-D convolutions with norms and pools, a mean over time: keyword spotting."""

    def __init__(self) -> None:
        widths = (1, 16, 32, 32)
        super().__init__()
        for inside, outside in pairwise(widths):
            kernel, stride = (16, 4) if inside == 1 else (3, 1)
            self.extend([nn.Conv1d(inside, outside, kernel, stride), nn.BatchNorm1d(outside), nn.ReLU(True)])
            self.append(nn.MaxPool1d(2))
        self.extend([nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(32, 6)])


class CausalBlock(nn.Module):
    """Dilated causal convolution with a gate, as in WaveNet."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.padding = dilation
        self.conv = nn.Conv1d(width, 2 * width, 2, dilation=dilation)
        self.skip, self.out = nn.Conv1d(width, width, 1), nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        value, gate = self.conv(F.pad(x, (self.padding, 0))).chunk(2, 1)
        hidden = torch.tanh(value) * torch.sigmoid(gate)
        return x + self.out(hidden), self.skip(hidden)


class WaveNet(nn.Module):
    """Stack of gated causal convolutions, the skips of which are summed."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv1d(1, width, 1)
        self.blocks = nn.ModuleList(CausalBlock(width, 2**k) for k in range(4))
        self.head = nn.Sequential(nn.ReLU(), nn.Conv1d(width, width, 1), nn.ReLU(), nn.Conv1d(width, 8, 1))

    def forward(self, x: Tensor) -> Tensor:
        x, total = self.stem(x), 0
        for block in self.blocks:
            x, skip = block(x)
            total = total + skip
        return self.head(total)


class Vocoder(nn.Module):
    """Transposed 1-D convolutions and residual blocks with leaky ReLU: spectrogram to waveform."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(8, 32, 7, padding=3)
        self.ups = nn.ModuleList([nn.ConvTranspose1d(32, 16, 8, 4, 2), nn.ConvTranspose1d(16, 8, 4, 2, 1)])
        self.blocks = nn.ModuleList(
            nn.ModuleList(nn.Conv1d(width, width, 3, padding=d, dilation=d) for d in (1, 3)) for width in (16, 8)
        )
        self.out = nn.Conv1d(8, 1, 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for up, convs in zip(self.ups, self.blocks, strict=True):
            x = up(F.leaky_relu(x, 0.1))
            branches = [x + conv(F.leaky_relu(x, 0.1)) for conv in convs]
            x = sum(branches) / len(branches)
        return torch.tanh(self.out(F.leaky_relu(x)))


class Spotter(nn.Module):
    """Log spectrogram within the model, depthwise separable convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(64))
        self.features = nn.Sequential(
            nn.BatchNorm2d(1), nn.Conv2d(1, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(True),
            nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.BatchNorm2d(16), nn.ReLU(True), nn.Conv2d(16, 24, 1),
            nn.BatchNorm2d(24), nn.ReLU(True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5),
        )  # fmt: skip

    def forward(self, wave: Tensor) -> Tensor:
        frames = wave.unfold(1, 64, 32) * self.window
        power = torch.fft.rfft(frames).abs().square()
        return self.features(torch.log(power + 1e-6).unsqueeze(1))


def waveform() -> Example:
    """Classifier of 1-D convolutions on the waveform."""
    return Waveform(), torch.randn(8, 1, 400)


def wavenet() -> Example:
    """Gated dilated causal convolutions with summed skips."""
    return WaveNet(), torch.randn(4, 1, 64)


def vocoder() -> Example:
    """Transposed 1-D convolutions and means of residual branches."""
    return Vocoder(), torch.randn(4, 8, 16)


def spectrogram_spotter() -> Example:
    """Keyword spotting with the Fourier transform inside of the model."""
    return Spotter(), torch.randn(8, 512)


def wav2vec2() -> Example:
    """transformers: wav2vec 2.0 with a positional convolution under weight norm."""
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

    config = Wav2Vec2Config(
        vocab_size=12, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64,
        conv_dim=(16, 16, 16), conv_stride=(4, 2, 2), conv_kernel=(8, 3, 3), num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4, mask_time_prob=0.0,
    )  # fmt: skip
    return Wav2Vec2ForCTC(config), torch.randn(4, 512)


def whisper() -> Example:
    """transformers: Whisper, 1-D convolutions before an encoder, a decoder of text."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    config = WhisperConfig(
        vocab_size=64, num_mel_bins=16, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, max_source_positions=16,
        max_target_positions=16, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
        use_cache=False,
    )  # fmt: skip
    inputs = {"input_features": torch.randn(4, 16, 32), "decoder_input_ids": torch.randint(3, 64, (4, 6))}
    return WhisperForConditionalGeneration(config), inputs


def conformer() -> Example:
    """torchaudio: Conformer, attention with padding and depthwise convolutions with gates."""
    from torchaudio.models import Conformer

    return Conformer(16, 4, 32, 1, 7), (torch.randn(4, 20, 16), torch.tensor([20, 16, 12, 8]))


def conv_tasnet() -> Example:
    """torchaudio: Conv-TasNet, masks on a learned basis of the waveform."""
    from torchaudio.models import ConvTasNet

    network = ConvTasNet(2, 8, 16, msk_kernel_size=3, msk_num_feats=8, msk_num_hidden_feats=16, msk_num_layers=2,
                         msk_num_stacks=2)  # fmt: skip
    return network, torch.randn(4, 1, 160)
