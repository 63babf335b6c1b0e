"""ATONet in PyTorch, written from the paper, with the published network's names: what ours is compared with.

Tests and benchmarks use it. `model(images)` gives logits at a quarter of the input, and in training mode the
auxiliary logits beside them.
"""

import torch
from torch import nn
from torch.nn import functional

AUX_LEVELS = (3, 4, 5)


class ATONet(nn.Module):
    """The paper's network; all five auxiliary heads are there, whichever of them a loss uses.

    num_classes, width and backbone_width are as in `atonet_jax.models.atonet.ATONet`, and so is spp_bins.
    """

    def __init__(self, num_classes, width=128, backbone_width=64, spp_bins=(8, 4, 2), dropout=0.1):
        super().__init__()
        channels = [backbone_width * 2**i for i in range(4)] + [width]
        self.layer0 = nn.Sequential(
            nn.Conv2d(3, backbone_width, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(backbone_width),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        self.layer1 = _stage(channels[0], channels[0], stride=1)
        self.layer2 = _stage(channels[0], channels[1], stride=2)
        self.layer3 = _stage(channels[1], channels[2], stride=2)
        self.layer4 = _stage(channels[2], channels[3], stride=2)
        self.spp = SPP(channels[3], width, spp_bins)
        for level, inputs in enumerate(channels, 1):
            self.add_module(f'up{level}', Up(inputs, width))
            self.add_module(f'aux_cls{level}', _head(inputs, width // 2 if level == 1 else width, num_classes))
        self.final_ocnv = _conv_norm(width, width, 3)
        self.cls = _head(width, width, num_classes, nn.Dropout2d(dropout))
        for module in [self.layer0, self.layer1, self.layer2, self.layer3, self.layer4]:
            for conv in module.modules():
                if isinstance(conv, nn.Conv2d):
                    nn.init.kaiming_normal_(conv.weight, mode='fan_out', nonlinearity='relu')

    def forward(self, images):
        """[B, 3, H, W] -> logits [B, classes, H / 4, W / 4], in training also {level: auxiliary logits}."""
        x = self.layer0(images)
        levels = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4, self.spp):
            x = layer(x)
            levels.append(x)
        size = levels[0].shape[2:]
        summed = sum(getattr(self, f'up{level}')(features, size) for level, features in enumerate(levels, 1))
        logits = self.cls(self.final_ocnv(functional.relu(summed)))
        if not self.training:
            return logits
        return logits, {level: getattr(self, f'aux_cls{level}')(levels[level - 1]) for level in AUX_LEVELS}


class BasicBlock(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = _conv_norm(inputs, outputs, 1, stride=stride, relu=False)

    def forward(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        x = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(x)) + shortcut)


class SPP(nn.Module):
    def __init__(self, inputs, width, bins):
        super().__init__()
        self.bins = bins
        self.conv1 = _conv_norm(inputs, inputs, 1)
        self.features = nn.ModuleList(_conv_norm(inputs, width, 1) for _ in bins)
        self.conv2 = _conv_norm(inputs + width * len(bins), width, 1)

    def forward(self, x):
        x = self.conv1(x)
        height, width = x.shape[2:]
        pyramid = [x]
        for rows, conv in zip(self.bins, self.features, strict=True):
            pooled = functional.adaptive_avg_pool2d(x, (rows, max(1, round(rows * width / height))))
            pooled = functional.interpolate(conv(pooled), (height, width), mode='bilinear', align_corners=True)
            pyramid.append(pooled)
        return self.conv2(torch.cat(pyramid, 1))


class Up(nn.Module):
    def __init__(self, inputs, width):
        super().__init__()
        self.blend_conv = _conv_norm(inputs, width, 3, relu=False)

    def forward(self, x, size):
        return functional.interpolate(self.blend_conv(x), size, mode='bilinear', align_corners=False)


def _conv_norm(inputs, outputs, kernel_size, stride=1, relu=True):
    conv = nn.Conv2d(inputs, outputs, kernel_size, stride=stride, padding=kernel_size // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), *([nn.ReLU()] if relu else []))


def _stage(inputs, outputs, stride):
    return nn.Sequential(BasicBlock(inputs, outputs, stride), BasicBlock(outputs, outputs, 1))


def _head(inputs, width, num_classes, *dropout):
    return nn.Sequential(*_conv_norm(inputs, width, 3), *dropout, nn.Conv2d(width, num_classes, 1))


def pixel_losses(logits, labels):
    """Cross-entropy of every pixel, the logits enlarged to the labels' size; 0 where the label is 255."""
    logits = functional.interpolate(logits, labels.shape[1:], mode='bilinear', align_corners=False)
    return functional.cross_entropy(logits, labels, ignore_index=255, reduction='none')


def mean_loss(losses, labels):
    return losses.sum() / (labels != 255).sum()


def hard_example_loss(losses, labels, threshold=0.7, min_kept=1 / 16):
    """Mean over the labelled pixels whose true class has a lower probability, at least a share of all pixels."""
    kept = max(round(min_kept * losses.numel()), 1)
    bound = min(-torch.log(torch.tensor(threshold)), losses.flatten().sort(descending=True).values[kept - 1])
    hard = (losses >= bound) & (labels != 255)
    return losses[hard].mean()


def shrink_labels(labels, size):
    """Nearest neighbour by half-pixel centres: [B, H, W] -> [B, *size]."""
    return functional.interpolate(labels[:, None].float(), size, mode='nearest-exact')[:, 0].long()


def loss_terms(outputs, labels, average=mean_loss):
    """[main, aux3, aux4, aux5] of a training output and labels [B, H, W] int64; the loss is their sum."""
    logits, aux = outputs
    terms = [average(pixel_losses(logits, labels), labels)]
    for level in AUX_LEVELS:
        target = shrink_labels(labels, aux[level].shape[2:])
        terms.append(average(pixel_losses(aux[level], target), target))
    return terms


def recipe_optimizer(model, learning_rate, momentum=0.9, weight_decay=1e-4, backbone_factor=0.1):
    """torch's SGD with the published runs' two groups: the convolutions of layer1 .. layer4, then all else."""
    backbone, rest = [], []
    for name, module in model.named_modules():
        in_stage = name.startswith(('layer1', 'layer2', 'layer3', 'layer4')) and isinstance(module, nn.Conv2d)
        (backbone if in_stage else rest).extend(module.parameters(recurse=False))
    groups = [
        {'params': backbone, 'lr': learning_rate * backbone_factor, 'weight_decay': weight_decay * backbone_factor},
        {'params': rest, 'lr': learning_rate, 'weight_decay': weight_decay},
    ]
    return torch.optim.SGD(groups, lr=learning_rate, momentum=momentum)
