"""The networks of the zoo: functions that return a network with random weights in a tiny configuration, and inputs."""

from __future__ import annotations

from collections.abc import Callable

from tests.zoo.networks import (
    audio,
    convolutional,
    detection,
    generative,
    language,
    segmentation,
    sequences,
    structured,
    video,
    vision_transformers,
)
from tests.zoo.subject import Example

FAMILIES: dict[str, tuple[Callable[[], Example], ...]] = {
    "detectors": (detection.yolo, detection.weighted_pyramid, detection.retinanet, detection.roi_heads, detection.detr),
    "segmentation in 2-D": (
        segmentation.unet, segmentation.unet_plus_plus, segmentation.deeplab, segmentation.pyramid_attention,
        segmentation.linknet, segmentation.attention_unet, segmentation.segformer,
    ),
    "segmentation in 3-D": (segmentation.unet_3d, segmentation.segresnet_3d, segmentation.dynunet_3d),
    "text encoders": (
        language.bert, language.albert, language.distilbert, language.roberta, language.deberta, language.modernbert,
    ),
    "encoder-decoders of text": (language.t5, language.bart, language.translator),
    "text decoders": (language.gpt2, language.llama, language.gemma, language.opt, language.bloom),
    "vision transformers": (
        vision_transformers.vit, vision_transformers.vit_torchvision, vision_transformers.cait,
        vision_transformers.swin, vision_transformers.maxvit, vision_transformers.clip,
    ),
    "hybrids of convolution and attention": (
        vision_transformers.mobilevit, vision_transformers.efficientformer, vision_transformers.levit,
        vision_transformers.efficientvit, vision_transformers.mixer, vision_transformers.poolformer,
    ),
    "convolutional classifiers": (
        convolutional.resnet, convolutional.senet, convolutional.res2net, convolutional.bit, convolutional.nfnet,
        convolutional.densenet, convolutional.inception, convolutional.vgg,
        convolutional.repvgg, convolutional.convnext,
    ),
    "compact classifiers": (
        convolutional.mobilenet_v3, convolutional.mobilenet_v4, convolutional.mobilenet_v4_hybrid,
        convolutional.efficientnet, convolutional.shufflenet, convolutional.squeezenet,
        convolutional.fastvit,
    ),
    "recurrent networks": (
        sequences.lstm_tagger, sequences.gru_tagger, sequences.gru_attention, sequences.line_reader,
    ),
    "mixtures of experts": (sequences.experts, sequences.dense_experts, language.mixtral),
    "state spaces": (sequences.selective_scan, language.mamba, language.rwkv),
    "forecasters": (sequences.forecaster, sequences.patch_forecaster),
    "audio": (
        audio.waveform, audio.wavenet, audio.vocoder, audio.spectrogram_spotter, audio.wav2vec2, audio.whisper,
        audio.conformer, audio.conv_tasnet,
    ),
    "video": (video.r3d, video.mc3, video.r2plus1d, video.swin_3d),
    "generators": (
        generative.super_resolution, generative.generator, generative.variational_autoencoder, generative.diffusion,
        generative.vector_quantized, generative.radiance,
    ),
    "normalizing flows": (generative.flow,),
    "tables, points, graphs, pairs": (
        structured.recommender, structured.points, structured.graph_convolution, structured.siamese,
        structured.feature_tokens,
    ),
    "reinforcement learning": (structured.player, structured.policy),
}  # fmt: skip

NETWORKS: dict[str, Callable[[], Example]] = {make.__name__: make for makes in FAMILIES.values() for make in makes}
