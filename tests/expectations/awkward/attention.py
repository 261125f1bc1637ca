"""Attention in the forms that break name- and shape-based rules."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class EinsumAttention(nn.Module):
    """Projections keep their heads on an axis of their own."""

    def __init__(self, dim: int = 16, heads: int = 4, size: int = 6) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.q = nn.Parameter(torch.randn(heads, dim, size))
        self.k = nn.Parameter(torch.randn(heads, dim, size))
        self.v = nn.Parameter(torch.randn(heads, dim, size))
        self.out = nn.Parameter(torch.randn(heads, size, dim))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        q = torch.einsum("bnd,hde->bhne", y, self.q)
        k = torch.einsum("bnd,hde->bhne", y, self.k)
        v = torch.einsum("bnd,hde->bhne", y, self.v)
        scores = torch.einsum("bhne,bhme->bhnm", q, k) * q.shape[-1] ** -0.5
        mixed = torch.einsum("bhnm,bhme->bhne", scores.softmax(-1), v)
        return x + torch.einsum("bhne,hed->bnd", mixed, self.out)


class TalkingHeads(nn.Module):
    """Heads are mixed before and after the softmax."""

    def __init__(self, dim: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.before = nn.Parameter(torch.eye(heads))
        self.after = nn.Parameter(torch.eye(heads))
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        scores = torch.einsum("bhnm,hg->bgnm", q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5, self.before)
        weights = torch.einsum("bhnm,hg->bgnm", scores.softmax(-1), self.after)
        return x + self.out((weights @ v).transpose(1, 2).flatten(2))


class _ParallelBlock(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(y).chunk(3, dim=-1))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        return x + (self.proj(attended) + self.fc2(F.gelu(self.fc1(y))))


class ParallelBlocks(nn.Module):
    """A small language model whose attention and MLP branches are added at once."""

    def __init__(self, dim: int = 16, heads: int = 4, blocks: int = 3) -> None:
        super().__init__()
        self.tokens = nn.Embedding(40, dim)
        self.positions = nn.Embedding(32, dim)
        self.blocks = nn.ModuleList(_ParallelBlock(dim, heads) for _ in range(blocks))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, 40, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class ClassTokenSkip(nn.Module):
    """Only the class token has a residual stream, which starts at a bare parameter."""

    def __init__(self, dim: int = 16) -> None:
        super().__init__()
        self.cls = nn.Parameter(torch.randn(1, 1, dim))
        self.embed = nn.Linear(8, dim)
        self.norm1 = nn.LayerNorm(dim)
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, 2 * dim)
        self.fc2 = nn.Linear(2 * dim, dim)
        self.head = nn.Linear(dim, 4)

    def forward(self, x: Tensor) -> Tensor:
        cls = self.cls.expand(x.shape[0], -1, -1)
        everything = self.norm1(torch.cat([cls, self.embed(x)], dim=1))
        k, v = self.kv(everything).chunk(2, dim=-1)
        cls = cls + self.proj(F.scaled_dot_product_attention(self.q(everything[:, :1]), k, v))
        cls = cls + self.fc2(F.gelu(self.fc1(self.norm2(cls))))
        return self.head(cls[:, 0])


class MultiQueryAttention(nn.Module):
    """Four query heads share one key and one value head, packed as v | q | k."""

    def __init__(self, dim: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.size = heads, dim // heads
        self.packed = nn.Linear(dim, dim + 2 * self.size)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        v, q, k = self.packed(x).split([self.size, self.heads * self.size, self.size], dim=-1)
        q = q.unflatten(-1, (self.heads, self.size)).transpose(1, 2)
        scores = q @ k.unsqueeze(1).transpose(-2, -1) / self.size**0.5
        return self.out((scores.softmax(-1) @ v.unsqueeze(1)).transpose(1, 2).flatten(2))


class EncoderStack(nn.Module):
    """torch's own encoder layers, with the norm before or after the branch."""

    def __init__(self, norm_first: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, norm_first=norm_first, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).mean(1))


class CrossAttention(nn.Module):
    """Keys and values of other widths, so that nn.MultiheadAttention keeps three matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, kdim=8, vdim=12, batch_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        mixed, _ = self.attention(query, key, value, need_weights=False)
        return self.head(query + mixed)
