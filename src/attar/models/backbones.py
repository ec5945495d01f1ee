"""Backbone: one face for every network that is kept after training, and building one by name.

Own small nets live in small_nets.py, binary ones in binary.py, small vision transformers in small_vits.py, handcrafted
features (hog, pixels) in handcrafted.py, everything else is timm's; lab_NAME is two of NAME, one for lightness and one
for colour, and lightness_NAME is one for lightness alone (lab.py); exit1_NAME is NAME up to its first early exit
(early_exit.py); stages_NAME is NAME read at all of its stages (every_stage.py).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attar.errors import BackboneError, unknown_name
from attar.models import binary, early_exit, every_stage, handcrafted, lab, small_nets, small_vits


@dataclass(frozen=True, kw_only=True)
class BackboneSpec:
    """What is needed to build the same network again.

    name: own or timm's. channels, image_size: of the input. stem: "standard", or "small" for small images.
    drop_path: stochastic depth while training.
    """

    name: str
    channels: int
    image_size: int
    stem: str = "standard"
    drop_path: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> BackboneSpec:
        return cls(**values)


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """eval() inside; afterwards every submodule is in the mode it had."""
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for m, training in modes:
            m.training = training


class Backbone(nn.Module):
    """A network that maps images (B, C, H, W) to features (B, D), and shows its intermediate maps by name.

    network: the wrapped module; all parameters are below `network.`, under the names timm gives them.
    num_features: D. recomputes: whether its activations are computed again in the backward pass.
    """

    def __init__(self, network: nn.Module, spec: BackboneSpec, num_features: int):
        super().__init__()
        self.network = network
        self.spec = spec
        self.num_features = num_features
        self.recomputes = False

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)

    def stages(self, images: Tensor) -> dict[str, Tensor]:
        """Intermediate maps by name, from the input to the output: (B, D', H', W'), or tokens (B, N, D')."""
        own: Callable[[Tensor], dict[str, Tensor]] | None = getattr(self.network, "stages_of", None)
        return own(images) if own is not None else _timm_stages(self.network, images)

    def reduces_to_a_pixel(self, side: int) -> bool:
        """Does the last map of images of `side` pixels hold a single position, so that nothing is left to pool?"""
        if self.spec.name in handcrafted.NAMES or isinstance(self.network, every_stage.EveryStage):
            return False
        maps = list(self.stages_of_blank(side).values())
        return bool(maps) and maps[-1].ndim == 4 and maps[-1].shape[2:] == (1, 1) and maps[0].shape[2:] != (1, 1)

    def stages_of_blank(self, side: int | None = None) -> dict[str, Tensor]:
        """What `stages` gives for two blank images in eval mode; of `side` pixels, or those it is built for."""
        with evaluation_mode(self), torch.no_grad():
            return self.stages(self._blank(side or self.spec.image_size))

    def _blank(self, side: int) -> Tensor:
        device = next((p.device for p in self.parameters()), None)
        return torch.zeros(2, self.spec.channels, side, side, device=device)

    def require_size(self, side: int, *, setting: str) -> None:
        """For methods that show it pieces of images: does it take squares of this many pixels?

        Raises:
            BackboneError: if not, naming the setting that makes them larger, or a multiple of its patches.
        """
        try:
            with evaluation_mode(self), torch.no_grad():
                self(self._blank(side))
        except Exception as error:  # any shape mismatch inside the network
            from attar.models.tokens import patch_size

            patch = patch_size(self)
            if side % patch:
                raise BackboneError(
                    f"{self.spec.name} cannot take pieces of {side} x {side} pixels; use another {setting}, or "
                    f"--image-size, so that they are a multiple of {patch}, the side of its patches."
                ) from error
            raise BackboneError(
                f"{self.spec.name} cannot take pieces of {side} x {side} pixels; use another {setting}, a larger "
                f"--image-size, or a net for small images such as resnet20. ({type(error).__name__}: {error})"
            ) from error

    def features_and_map(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, D) and what they are pooled from, in one pass: (B, D', H', W'), or tokens (B, N, D').

        Raises:
            BackboneError: for a network that pools no map.
        """
        network: Any = self.network
        if hasattr(network, "features_and_map"):  # a network around another
            return network.features_and_map(images)
        if not hasattr(network, "forward_features") or not hasattr(network, "forward_head"):
            raise BackboneError(f"{self.spec.name} shows no map that its features are pooled from; take a convnet.")
        feature_map = network.forward_features(images)
        return network.forward_head(feature_map), feature_map

    def features_and_stages(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Features (B, D) and what `stages` gives, in one pass.

        Raises:
            BackboneError: for a network that cannot.
        """
        network: Any = self.network
        if isinstance(network, small_nets.Staged):
            maps = network.stages_of(images)
            return network.forward_head(list(maps.values())[-1]), maps
        if not hasattr(network, "forward_intermediates") or not hasattr(network, "forward_head"):
            raise BackboneError(f"{self.spec.name} does not show its stages on the way; take a ResNet or its kin.")
        last, listed = network.forward_intermediates(images)
        return network.forward_head(last), _named(network, listed)

    @torch.no_grad()
    def map_shape(self) -> tuple[int, ...]:
        """Of what the features of one image are pooled from: (D', H', W'), or (N, D') for tokens.

        Raises:
            BackboneError: for a network that pools no map.
        """
        with evaluation_mode(self):
            _, feature_map = self.features_and_map(self._blank(self.spec.image_size))
        return tuple(feature_map.shape[1:])

    def checkpoint_activations(self) -> None:
        """Keep only the inputs of blocks for the backward pass and compute the rest again: less memory, more time.

        Weights and gradients are what they would be; batch norm's running statistics move twice a step.

        Raises:
            BackboneError: for a network that cannot.
        """
        try:
            self.network.set_grad_checkpointing(True)  # type: ignore[operator]
        except (AttributeError, AssertionError) as error:
            raise BackboneError(
                f"{self.spec.name} cannot recompute its activations; leave out --checkpoint-activations."
            ) from error
        self.recomputes = True

    def timm_state_dict(self) -> dict[str, Tensor]:
        """The weights under timm's names (own nets: under their own)."""
        return self.network.state_dict()


def _timm_stages(network: Any, images: Tensor) -> dict[str, Tensor]:
    """Through timm's forward_intermediates; networks without it are read at the top-level blocks of their body."""
    if hasattr(network, "forward_intermediates"):
        maps = network.forward_intermediates(images, intermediates_only=True)
        return _named(network, maps)
    found: dict[str, Tensor] = {}
    body = [(name, child) for name, child in network.named_children()]
    hooks = [child.register_forward_hook(_keeping(found, name)) for name, child in body]
    try:
        network.forward_features(images)
    finally:
        for hook in hooks:
            hook.remove()
    return found


_STEMS = ("act1", "act2", "bn1", "conv_stem", "features.conv1_1", "features.norm0", "layer0", "level0", "stem_dct")
LAYER_NAMES = 2  # part of what a cache of layers is found by: counted up when a name comes to mean another map


def _named(network: Any, maps: Sequence[Tensor]) -> dict[str, Tensor]:
    """stage1, stage2, …, as papers count them: where timm's first map is the stem's (ResNets: layer1 is stage1), it is
    called so."""
    first = network.feature_info[0]["module"] if isinstance(getattr(network, "feature_info", None), list) else ""
    stem = first in _STEMS or first.split(".")[0] == "stem"
    names = ["stem"] * stem + [f"stage{i + 1}" for i in range(len(maps) - stem)]
    return dict(zip(names, maps, strict=True))


def _keeping(found: dict[str, Tensor], name: str) -> Callable[..., None]:
    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim >= 3:
            found[name] = output

    return keep


def patch_map(backbone: Backbone, feature_map: Tensor) -> Tensor:
    """What `Backbone.features_and_map` showed as a map (B, D, H, W): class tokens and registers are left out.

    Raises:
        BackboneError: tokens that form no square grid.
    """
    network: Any = backbone.network
    if feature_map.ndim == 4:
        return feature_map.permute(0, 3, 1, 2) if getattr(network, "output_fmt", "") == "NHWC" else feature_map
    patches = feature_map[:, getattr(network, "num_prefix_tokens", 0) :]
    side = round(patches.shape[1] ** 0.5)
    if side * side != patches.shape[1]:
        raise BackboneError(f"{backbone.spec.name}: its {patches.shape[1]} patch tokens form no square grid.")
    return patches.transpose(1, 2).unflatten(2, (side, side))


def backbone_names(*, with_timm: bool = False) -> list[str]:
    """Own names (factors, depths and patches are open: resnet20x2, wrn_16_2, vit_tiny_p6), and timm's on demand."""
    own = [*small_nets.EXAMPLES, *binary.EXAMPLES, *small_vits.EXAMPLES, *handcrafted.NAMES]
    if not with_timm:
        return own
    import timm

    return own + timm.list_models()


def check_name(name: str, *, stem: str = "standard") -> None:
    """Is there such a network, with such a stem? Without building it.

    Raises:
        BackboneError: an unknown name (nearest names), or an unknown stem.
    """
    if stem not in ("standard", "small"):
        raise BackboneError(f"--stem {stem!r} is unknown; accepted: standard, small.")
    name = name.removeprefix(every_stage.PREFIX)
    name = name.removeprefix(lab.prefix_of(name))
    if cut := early_exit.parse(name):
        name = cut[1]
    if name.startswith(every_stage.PREFIX):
        raise BackboneError(
            f"{name}: {every_stage.PREFIX} stands first in a name, and not within another. Methods that take a network "
            "apart (colorization, cmc) or cut it (byot) need it without."
        )
    if name in handcrafted.NAMES or small_vits.matches(name) or build_small(name, channels=3) is not None:
        if stem == "small":
            raise BackboneError(f"{name} takes no stem=small: it would be ignored. Leave it out.")
        return
    import timm

    if not timm.is_model(name):
        known = backbone_names(with_timm=True)
        if "stage" in name or not name:  # nearly the prefix, or it alone
            known = [every_stage.PREFIX + one for one in known]
        raise BackboneError(unknown_name("backbone", name or every_stage.PREFIX, known))


def build_small(name: str, *, channels: int) -> nn.Module | None:
    """An own convolutional network, real or binary; None for any other name."""
    return small_nets.build(name, channels=channels) or binary.build(name, channels=channels)


def build_backbone(
    name: str,
    *,
    channels: int = 3,
    image_size: int = 224,
    stem: str = "standard",
    pretrained: bool = False,
    drop_path: float = 0.0,
) -> Backbone:
    """Build a network without a classifier; initial weights come from torch's global generator.

    Args:
        name: an own net (small_nets.py, binary.py, small_vits.py), "hog", "pixels", any name of timm, or one of
            these behind "stages_", "lab_", "lab3_" or "lightness_".
        stem: "small" (3x3 convolution of stride 1, no pooling) for timm's ResNets and their kin on small images.
        pretrained: load timm's published weights, which must be on this machine or reachable.
        drop_path: stochastic depth, for networks that have it.

    Raises:
        BackboneError: unknown name (nearest names), images too small, a stem or weights it does not have.
    """
    spec = BackboneSpec(name=name, channels=channels, image_size=image_size, stem=stem, drop_path=drop_path)
    options: dict[str, Any] = {
        "channels": channels,
        "image_size": image_size,
        "stem": stem,
        "pretrained": pretrained,
        "drop_path": drop_path,
    }
    check_name(name, stem=stem)
    if name.startswith(every_stage.PREFIX):
        whole = build_backbone(name.removeprefix(every_stage.PREFIX), **options)
        read = every_stage.EveryStage(whole)
        return Backbone(read, spec, _probe(read, spec).shape[1])
    if lab.prefix_of(name):
        return _build_lab(spec, pretrained)
    if cut := early_exit.parse(name):
        return cut_at_exit(build_backbone(cut[1], **options), cut[0])
    vit = small_vits.build(name, channels=channels, image_size=image_size, drop_path=drop_path)
    network = vit or build_small(name, channels=channels) or handcrafted.build(name, channels, image_size)
    if network is None:
        network = _build_timm(spec, pretrained)
    else:
        for given, option in (
            (stem == "small", "stem=small"),
            (pretrained, "pretrained"),
            (drop_path > 0 and vit is None, "drop_path"),
        ):
            if given:
                raise BackboneError(f"{name} takes no {option}: it would be ignored. Leave it out.")
    features = _probe(network, spec)
    return Backbone(network, spec, features.shape[1])


def _build_lab(spec: BackboneSpec, pretrained: bool) -> Backbone:
    if spec.channels != 3:
        raise BackboneError(
            f"{spec.name} takes lightness and colour apart, so it needs images of 3 channels; these have "
            f"{spec.channels}. Grey images have no colour for colorization or cmc to learn from: take rotation or "
            "inpainting."
        )
    prefix = lab.prefix_of(spec.name)
    channels = lab.PARTS.get(prefix, {"lightness": 1})
    parts = {
        name: build_backbone(
            spec.name.removeprefix(prefix),
            channels=number,
            image_size=spec.image_size,
            stem=spec.stem,
            pretrained=pretrained,
            drop_path=spec.drop_path,
        )
        for name, number in channels.items()
    }
    network = lab.LabParts(parts, tuple(channels.values())) if prefix in lab.PARTS else lab.LightnessOnly(**parts)
    return Backbone(network, spec, sum(part.num_features for part in parts.values()))


def cut_at_exit(backbone: Backbone, number: int, branch: early_exit.Branch | None = None) -> Backbone:
    """A network of its own, up to this exit (from 1, the shallowest); the weights are copied.

    branch: what makes features of the map there; None: a new one.

    Raises:
        BackboneError: a network without early exits, or with fewer.
    """
    exits = early_exit.exits_of(backbone)
    name = f"exit{number}_{backbone.spec.name}"
    if not 1 <= number <= len(exits):
        raise BackboneError(f"{name}: {backbone.spec.name} has {len(exits)} early exits, exit1 to exit{len(exits)}.")
    stages = list(backbone.stages_of_blank())
    last = list(exits)[number - 1]
    network = early_exit.EarlyExit(
        copy.deepcopy(backbone.network), stages, last, copy.deepcopy(branch) if branch is not None else exits[last]
    )
    return Backbone(network, replace(backbone.spec, name=name), backbone.num_features)


def _build_timm(spec: BackboneSpec, pretrained: bool) -> nn.Module:
    import timm

    options: dict[str, Any] = {"num_classes": 0, "in_chans": spec.channels}
    if pretrained:
        options["pretrained_cfg_overlay"] = _source_of_weights(spec.name)
    if spec.drop_path:
        options["drop_path_rate"] = spec.drop_path
    flexible: tuple[dict[str, Any], ...] = (
        {"img_size": spec.image_size, "dynamic_img_size": True},
        {"img_size": spec.image_size},
        {},
    )
    for i, sized in enumerate(flexible):  # ViTs take both, other transformers a size, convnets neither
        try:
            network = timm.create_model(spec.name, pretrained=pretrained, **options, **sized)
            break
        except TypeError as error:
            if i == len(flexible) - 1:
                raise BackboneError(f"{spec.name} cannot be built with {options}: {error}") from error
        except (AssertionError, ValueError, RuntimeError, ZeroDivisionError) as error:
            if pretrained and not isinstance(error, AssertionError):
                raise BackboneError(_no_weights(spec.name, error)) from error
            raise BackboneError(_too_small(spec, error)) from error
        except Exception as error:
            if pretrained:
                raise BackboneError(_no_weights(spec.name, error)) from error
            raise
    if spec.stem == "small":
        _small_stem(network, spec)
    return network


def published_config(name: str) -> Any:
    """What timm says of a network's default weights (their place, the images they want); None for other names."""
    import timm

    name = name.removeprefix(every_stage.PREFIX)
    return timm.get_pretrained_cfg(name) if timm.is_model(name) else None


def cached_weights(name: str) -> tuple[str, Path] | None:
    """The published name of timm's default weights of this network and their file; None if they are not here."""
    from huggingface_hub import try_to_load_from_cache

    published = published_config(name)
    if published is None:
        return None
    if published.hf_hub_id:
        usual = ("model.safetensors", "pytorch_model.bin")
        for file in (published.hf_hub_filename,) if published.hf_hub_filename else usual:
            if isinstance(found := try_to_load_from_cache(published.hf_hub_id, file), str):
                return str(published.hf_hub_id), Path(found)
    elif isinstance(published.url, str) and published.url:
        path = Path(torch.hub.get_dir()) / "checkpoints" / Path(published.url).name
        return (path.name, path) if path.is_file() else None
    return None


def _source_of_weights(name: str) -> dict[str, Any]:
    """What to tell timm: the file that is here, so that no network is asked; else nothing, if the Hugging Face hub
    answers: it is asked once, because where there is none loading would ask for most of a minute, and say so each time.

    Raises:
        BackboneError: the weights are not here and the hub does not answer.
    """
    from huggingface_hub import HfApi

    here = cached_weights(name)
    if here is not None:
        return {"file": str(here[1]), "custom_load": False}  # which is for the authors' own files, not for these
    published = published_config(name)
    if published is not None and published.hf_hub_id:
        try:
            HfApi().model_info(published.hf_hub_id, timeout=10)
        except Exception as error:  # of the connection, of a proxy, or that the hub is not to be asked
            raise BackboneError(_no_weights(name, error)) from error
    return {}


def _no_weights(name: str, error: Exception) -> str:
    return (
        f"the published weights of {name} are not on this machine and could not be fetched ({type(error).__name__}). "
        f"Connect to the network once; or bring them as a file and write {name}@FILE, as a teacher, to evaluate, or as "
        "--init in the place of --pretrained."
    )


def _too_small(spec: BackboneSpec, error: Exception) -> str:
    smallest = _smallest_size(spec)
    least = f"it needs at least {smallest}" if smallest else "no larger size was found to work either"
    return (
        f"{spec.name} cannot take images of {spec.image_size} x {spec.image_size} pixels and {spec.channels} channels: "
        f"{least}. Use a larger --image-size, --stem small, or a net for small images such as resnet20. "
        f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
    )


def _smallest_size(spec: BackboneSpec) -> int | None:
    """The smallest common size the network accepts, by trying; for an error text only."""
    for size in (8, 16, 24, 28, 32, 48, 64, 96, 128, 160, 192, 224, 256, 384):
        if size > spec.image_size:
            try:
                build_backbone(spec.name, channels=spec.channels, image_size=size, stem=spec.stem)
            except BackboneError:
                continue
            return size
    return None


def _small_stem(network: Any, spec: BackboneSpec) -> None:
    """The stem of CIFAR's ResNets: 3x3, stride 1, no pooling. In place."""
    stem = getattr(network, "conv1", None)
    if not isinstance(stem, nn.Conv2d) or not hasattr(network, "maxpool"):
        raise BackboneError(
            f"--stem small is defined for ResNets and their kin with a single-convolution stem, not for {spec.name}. "
            "Use resnet18, resnet50, …, an own small net such as resnet20, or --stem standard."
        )
    network.conv1 = nn.Conv2d(spec.channels, stem.out_channels, 3, stride=1, padding=1, bias=stem.bias is not None)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    network.maxpool = nn.Identity()


def _probe(network: nn.Module, spec: BackboneSpec) -> Tensor:
    """One forward pass of two blank images: do the shapes fit, and how wide are the features?"""
    try:
        with evaluation_mode(network), torch.no_grad():
            features = network(torch.zeros(2, spec.channels, spec.image_size, spec.image_size))
            if features.ndim != 2 or features.shape[1] < 1:
                raise BackboneError(f"{spec.name} gives {tuple(features.shape)} instead of features (B, D).")
    except BackboneError:
        raise
    except Exception as error:  # any shape mismatch inside the network
        raise BackboneError(_too_small(spec, error)) from error
    return features
