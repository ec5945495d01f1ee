"""Export of a network with early exits: one ONNX graph that stops where every image has left.

`images` (B, C, H, W) and `thresholds` (K,), one for each early exit -> `logits` (B, N) and `exit` (B,). An image leaves
at the first exit whose largest class probability reaches its threshold, as evaluation/exits.py counts it, else it goes
to the end, K + 1. A threshold of 0 lets all leave, one above 1 none: so every exit can be had alone.

What follows an exit lies in the branch of an ONNX `If`: it is computed only while an image of the batch is unsure, and
from the maps at hand, so that shared layers run once. A graph with an output for each exit would not do: ONNX Runtime
computes all of a graph whatever outputs are asked for, and RunOptions.only_execute_path_to_fetches changes that in its
training builds only (1.31: the same nodes ran with and without).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from torch import Tensor, nn

from attar.data.images import ImageSpec
from attar.exporting import (
    PARITY_BATCHES,
    PROBABILITIES,
    ExportError,
    ExportResult,
    check_parity,
    count_parameters,
    difference,
    hardware,
    latency_of,
    open_session,
    preparation,
    renamed_when_done,
    require_one_file,
    require_onnx,
    save_onnx,
    to_onnx,
)
from attar.models.backbones import Backbone
from attar.models.early_exit import EarlyExit
from attar.models.encoder import Encoder

if TYPE_CHECKING:
    import onnx
    import onnxruntime

    from attar.evaluation.subject import Classifier

Run = Callable[[np.ndarray], list[np.ndarray]]

NEVER = 2.0  # a threshold that no probability reaches


class AllExits(nn.Module):
    """Images -> the logits (B, N) of every exit, from the shallowest, and of the whole network; shared layers once."""

    def __init__(self, encoder: Encoder, exits: Sequence[tuple[Backbone, Classifier]], classifier: Classifier):
        super().__init__()
        self.encoder = encoder
        cut = [cast(EarlyExit, backbone.network) for backbone, _ in exits]
        self.stages = [network.stage_names[-1] for network in cut]
        self.branches = nn.ModuleList(network.branch for network in cut)
        self.heads = nn.ModuleList(c.head for c in (*(own for _, own in exits), classifier))
        self.cpu().float().eval()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        encoder = self.encoder
        deepest, maps = encoder.backbone.features_and_stages((images - encoder.mean) / encoder.std)
        early = [branch(maps[stage]) for stage, branch in zip(self.stages, self.branches, strict=True)]
        return tuple(head(f) for head, f in zip(self.heads, (*early, deepest), strict=True))


def export_exits(
    backbone: Backbone,
    image: ImageSpec,
    exits: Mapping[str, tuple[Backbone, Classifier]],
    classifier: Classifier,
    *,
    out: Path,
) -> ExportResult:
    """Write the graph and check each exit against the network of its own that the run keeps.

    Args:
        backbone, classifier: the whole. exits: by name, from the shallowest.

    Raises:
        MissingDependency: onnx, onnxscript or onnxruntime is not installed.
        ExportError: an exit differs from the original, or the network is too large for one file.
    """
    require_onnx()
    out.parent.mkdir(parents=True, exist_ok=True)
    encoder = Encoder(backbone, image).cpu().float().eval()
    require_one_file(encoder)
    network = AllExits(encoder, list(exits.values()), classifier)
    names = [*exits, "whole"]
    with renamed_when_done(out) as temporary:
        model = to_onnx(network, image, names)
        _nest(model, names)
        save_onnx(model, temporary, encoder, image, classes=classifier.classes)
        session = open_session(temporary)
        parity, latency = dict.fromkeys(PARITY_BATCHES, 0.0), {}
        for number, (cut, own) in enumerate((*exits.values(), (backbone, classifier)), 1):
            run = _alone(session, number, len(exits))
            single = nn.Sequential(Encoder(cut, image), own.head).cpu().float().eval()
            for batch in PARITY_BATCHES:
                parity[batch] = float(np.maximum(parity[batch], difference(single, run, image, batch)))
            latency[f"ONNX Runtime, {names[number - 1]}"] = latency_of(run, image)
        check_parity(out, parity, backbone)
    return ExportResult(
        out,
        "onnx",
        out.stat().st_size,
        count_parameters(network),
        _snippet(image, out, names, len(classifier.classes)),
        parity,
        latency,
        hardware(),
    )


def _alone(session: onnxruntime.InferenceSession, number: int, num_early: int) -> Run:
    """The exit of this number for every image: pixels -> its logits, the only output."""
    thresholds = np.array([NEVER if k < number else 0 for k in range(1, num_early + 1)], np.float32)

    def run(pixels: np.ndarray) -> list[np.ndarray]:
        logits, left_at = session.run(None, {"images": pixels, "thresholds": thresholds})
        if (left_at != number).any():
            raise ExportError(
                f"the exported network left at exits {left_at.tolist()} where exit {number} was asked for."
            )
        return [logits]

    return run


# ---- a graph with an output for each exit -> what follows an exit inside an If ---------------------------------------


def _nest(model: onnx.ModelProto, names: Sequence[str]) -> None:
    """In place: the outputs `names` become `logits` and `exit`, and a further input is `thresholds`."""
    from onnx import TensorProto, helper

    graph = model.graph
    parts = _parts(graph, names)
    weights = _weights(graph, parts)
    num_classes = graph.output[-1].type.tensor_type.shape.dim[1].dim_value
    batch = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    nodes = _level(parts, weights, names, 1)
    thresholds = helper.make_tensor_value_info("thresholds", TensorProto.FLOAT, [len(names) - 1])
    for old in (graph.node, graph.output, graph.initializer, graph.value_info):
        del old[:]
    graph.input.append(thresholds)
    graph.initializer.extend(weights[0])
    graph.node.extend([*nodes, helper.make_node("Identity", ["exit1/answer"], ["logits"])])
    graph.node.append(helper.make_node("Identity", ["exit1/leave"], ["exit"]))
    graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, num_classes]))
    graph.output.append(helper.make_tensor_value_info("exit", TensorProto.INT64, [batch]))


def _parts(graph: onnx.GraphProto, names: Sequence[str]) -> list[list[onnx.NodeProto]]:
    """The nodes that each output needs beyond those of the outputs before it, in the graph's order."""
    maker = {made: i for i, node in enumerate(graph.node) for made in node.output}
    taken: set[int] = set()
    parts = []
    for name in names:
        needed: set[int] = set()
        open_names = [name]
        while open_names:
            i = maker.get(open_names.pop())
            if i is not None and i not in taken and i not in needed:
                needed.add(i)
                open_names += graph.node[i].input
        taken |= needed
        parts.append([graph.node[i] for i in sorted(needed)])
    return parts


def _weights(graph: onnx.GraphProto, parts: list[list[onnx.NodeProto]]) -> list[list[onnx.TensorProto]]:
    """The initialisers of each part: in the branch that uses them, where the runtime prepares them for its layers. What
    several parts use goes to the first of them, whose names the later ones see."""
    found: list[list[onnx.TensorProto]] = [[] for _ in parts]
    first = {name: k for k in reversed(range(len(parts))) for node in parts[k] for name in node.input}
    for tensor in graph.initializer:
        if tensor.name in first:
            found[first[tensor.name]].append(tensor)
    return found


def _level(
    parts: list[list[onnx.NodeProto]], weights: list[list[onnx.TensorProto]], names: Sequence[str], k: int
) -> list[onnx.NodeProto]:
    """The nodes from exit k on: they make exitK/answer (B, N) and exitK/leave (B,), as if no image had left before."""
    from onnx import TensorProto, helper

    make, logits = helper.make_node, names[k - 1]

    def constant(name: str, *values: int) -> onnx.NodeProto:
        return make("Constant", [], [name], value=helper.make_tensor(name, TensorProto.INT64, [len(values)], values))

    nodes = [*parts[k - 1], constant(f"exit{k}/number", k)]
    if k == len(names):
        return [
            *nodes,
            make("Identity", [logits], [f"exit{k}/answer"]),
            make("Shape", [logits], [f"exit{k}/rows"], end=1),
            make("Expand", [f"exit{k}/number", f"exit{k}/rows"], [f"exit{k}/leave"]),
        ]
    nodes += [
        constant(f"exit{k}/index", k - 1),
        constant(f"exit{k}/classes", 1),
        make("Softmax", [logits], [f"exit{k}/probabilities"], axis=1),
        make("ReduceMax", [f"exit{k}/probabilities", f"exit{k}/classes"], [f"exit{k}/largest"], keepdims=0),  # (B,)
        make("Gather", ["thresholds", f"exit{k}/index"], [f"exit{k}/threshold"]),  # (1,)
        make("GreaterOrEqual", [f"exit{k}/largest", f"exit{k}/threshold"], [f"exit{k}/sure"]),
    ]
    gone = f"exit{k}/sure"
    if k > 1:  # images that left before do not keep the batch going
        gone = f"exit{k}/gone"
        nodes.append(make("Or", [f"exit{k}/sure", "exit1/sure" if k == 2 else f"exit{k - 1}/gone"], [gone]))
    values = lambda *made: [helper.make_empty_tensor_value_info(name) for name in made]  # noqa: E731
    stop = [
        make("Identity", [logits], [f"exit{k}/stopped_answer"]),
        make("Identity", [f"exit{k}/number"], [f"exit{k}/stopped_leave"]),
    ]
    go_on = _level(parts, weights, names, k + 1)
    return [
        *nodes,
        make("Cast", [gone], [f"exit{k}/gone_number"], to=TensorProto.INT32),
        make("ReduceMin", [f"exit{k}/gone_number"], [f"exit{k}/all_gone"], keepdims=0),
        make("Cast", [f"exit{k}/all_gone"], [f"exit{k}/stop"], to=TensorProto.BOOL),
        make(
            "If",
            [f"exit{k}/stop"],
            [f"exit{k}/later_answer", f"exit{k}/later_leave"],
            then_branch=helper.make_graph(
                stop, f"exit{k}/stop", [], values(f"exit{k}/stopped_answer", f"exit{k}/stopped_leave")
            ),
            else_branch=helper.make_graph(
                go_on, f"exit{k}/go_on", [], values(f"exit{k + 1}/answer", f"exit{k + 1}/leave"), weights[k]
            ),
        ),
        make("Unsqueeze", [f"exit{k}/sure", f"exit{k}/classes"], [f"exit{k}/sure_rows"]),
        make("Where", [f"exit{k}/sure_rows", logits, f"exit{k}/later_answer"], [f"exit{k}/answer"]),
        make("Where", [f"exit{k}/sure", f"exit{k}/number", f"exit{k}/later_leave"], [f"exit{k}/leave"]),
    ]


def _snippet(image: ImageSpec, path: Path, names: Sequence[str], num_classes: int) -> str:
    early = len(names) - 1
    return f"""\
import json

import numpy as np
import onnxruntime
from PIL import Image

{preparation(image)}
session = onnxruntime.InferenceSession({str(path)!r})
classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])

# An image leaves at the first of the {early} early exits whose largest class probability reaches its threshold;
# the rest is not computed. 0 leaves there in any case, 2 never does. Take the threshold from the rows of
# attar evaluate RUN LABELLED --protocol exits
thresholds = np.full({early}, 0.9, np.float32)
logits, left_at = session.run(["logits", "exit"], {{"images": pixels, "thresholds": thresholds}})
# (1, {num_classes}), and (1,): 1 to {early}, or {early + 1} for the whole network; normalisation is inside
{PROBABILITIES}"""
