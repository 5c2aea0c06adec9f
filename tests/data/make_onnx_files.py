"""Write the ONNX files of PyTorch that tests/extras/test_onnx_reader.py reads.

    python tests/data/make_onnx_files.py

needs torch and onnxscript, which the tests do not need. Both exporters of PyTorch write each
network: the one with TorchScript, and the newer one, which puts large weights into a second file.
"""

import warnings
from pathlib import Path

import onnx
import torch
from torch import nn

FOLDER = Path(__file__).parent / "onnx"
BATCH = torch.export.Dim("batch")


class Plain(nn.Module):
    """The form of most examples: functions in `forward`, and a view that names the batch."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 5, padding=2)
        self.conv2 = nn.Conv2d(4, 6, 3)
        self.drop = nn.Dropout(0.25)
        self.fc1 = nn.Linear(6 * 2 * 1, 20)
        self.fc2 = nn.Linear(20, 10, bias=False)

    def forward(self, x):
        x = nn.functional.max_pool2d(torch.relu(self.conv1(x)), 2)
        x = nn.functional.max_pool2d(nn.functional.leaky_relu(self.conv2(x)), 2)
        x = x.view(x.size(0), -1)
        x = self.fc2(self.drop(torch.tanh(self.fc1(x))))
        return nn.functional.log_softmax(x, dim=1)


class Block(nn.Module):
    def __init__(self, channels, filters, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, filters, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(filters)
        self.conv2 = nn.Conv2d(filters, filters, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(filters)
        self.shortcut = nn.Identity()
        if channels != filters:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, filters, 1, stride, bias=False), nn.BatchNorm2d(filters)
            )

    def forward(self, x):
        y = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


def residual():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), Block(4, 4), nn.AvgPool2d(2),
        Block(4, 6), nn.Conv2d(6, 12, 3, groups=6), nn.Sigmoid(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(12, 10),
    )


def strided():
    """The form of ResNet-18: every stride is 2, with padding 1 on both sides of an even size."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, 2, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
        nn.MaxPool2d(3, 2, padding=1), Block(4, 4), Block(4, 6, 2), nn.AdaptiveAvgPool2d((1, 1)),
        nn.Flatten(), nn.Linear(6, 10),
    )


def export(name, network, shape):
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    x = torch.randn(2, *shape)
    network.eval()
    options = {"input_names": ["input"], "dynamic_axes": {"input": {0: "batch"}}}
    torch.onnx.export(network, x, FOLDER / f"{name}_script.onnx", dynamo=False, **options)
    torch.onnx.export(network, x, FOLDER / f"{name}_fixed.onnx", dynamo=False)
    keep = torch.onnx.TrainingMode.PRESERVE  # otherwise BatchNorm is computed into the weights
    torch.onnx.export(network, x, FOLDER / f"{name}_train.onnx", dynamo=False, training=keep)
    path = FOLDER / f"{name}_dynamo.onnx"
    torch.onnx.export(network, (x,), path, dynamo=True, dynamic_shapes=({0: BATCH},))
    model = onnx.load(path, load_external_data=False)
    for part in (model, model.graph, *model.graph.node, *model.graph.value_info):
        part.ClearField("metadata_props")  # paths of this machine
    path.write_bytes(model.SerializeToString())


def main():
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    FOLDER.mkdir(exist_ok=True)
    export("plain", Plain(), (1, 14, 10))
    export("residual", residual(), (1, 14, 10))
    export("strided", strided(), (1, 14, 10))


if __name__ == "__main__":
    main()
