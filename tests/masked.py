"""Source of networks that a test writes to a file: one masks its gradients, one is random."""

ROUNDED = """
import torch
from torch import nn

class Rounded(nn.Module):
    def __init__(self, num_classes=10, in_channels=1):
        super().__init__()
        self.last = nn.Linear(64, num_classes)

    def forward(self, images):
        return self.last(((images * 16).round() / 16).flatten(1))

class Random(Rounded):
    def forward(self, images):
        return self.last((images + 0.1 * torch.randn_like(images)).flatten(1))
"""
