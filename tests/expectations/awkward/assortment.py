"""What the other files have not: recurrences, routings, filters and fused weights of many kinds.

The expectations of these eighteen were written after most of the tracer, by somebody who had not seen it; at the
first run, as they reported, 164 of 166 parameters were right.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional


class TimeMix(nn.Module):
    """RWKV-like: a token shift with learned mixing, a decaying recurrence over exp(k), a channel mix by relu²."""

    def __init__(self, d: int = 8) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.mix = nn.Parameter(torch.rand(d))
        self.decay = nn.Parameter(torch.rand(d))
        self.key, self.value, self.receptance, self.out = (nn.Linear(d, d, bias=False) for _ in range(4))
        self.up, self.down, self.gate = (
            nn.Linear(d, 2 * d, bias=False),
            nn.Linear(2 * d, d, bias=False),
            nn.Linear(d, d, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        before = functional.pad(h, (0, 0, 1, -1))
        h = h * self.mix + before * (1 - self.mix)
        k, v, r = self.key(h), self.value(h), torch.sigmoid(self.receptance(h))
        num, den = torch.zeros_like(v[:, 0]), torch.zeros_like(v[:, 0])
        w, rows = torch.exp(-torch.exp(self.decay)), []
        for t in range(x.shape[1]):
            e = torch.exp(k[:, t])
            num, den = num * w + e * v[:, t], den * w + e
            rows.append(num / (den + 1e-6))
        x = x + self.out(r * torch.stack(rows, 1))
        h = self.norm2(x)
        return x + torch.sigmoid(self.gate(h)) * self.down(torch.relu(self.up(h)) ** 2)


class PackedGateCell(nn.Module):
    """GRU written by hand with the three gates packed."""

    def __init__(self, i: int = 5, h: int = 6) -> None:
        super().__init__()
        self.inward, self.around, self.head = nn.Linear(i, 3 * h), nn.Linear(h, 3 * h, bias=False), nn.Linear(h, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(x.shape[1], 6)
        for step in x:
            ri, zi, ni = self.inward(step).chunk(3, -1)
            rh, zh, nh = self.around(state).chunk(3, -1)
            r, z = torch.sigmoid(ri + rh), torch.sigmoid(zi + zh)
            state = (1 - z) * torch.tanh(ni + r * nh) + z * state
        return self.head(state)


class SparseExperts(nn.Module):
    """Top-1 routing with a loop over experts and index_add."""

    def __init__(self, d: int = 8, n: int = 3) -> None:
        super().__init__()
        self.norm, self.router = nn.LayerNorm(d), nn.Linear(d, n, bias=False)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(d, 16), nn.GELU(), nn.Linear(16, d)) for _ in range(n))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        weight, chosen = self.router(h).softmax(-1).topk(1, -1)
        out = torch.zeros_like(h)
        for i, expert in enumerate(self.experts):
            rows = torch.where(chosen[:, 0] == i)[0]
            out.index_add_(0, rows, expert(h[rows]) * weight[rows])
        return x + out


class LatentReader(nn.Module):
    """Perceiver: learned latents attend to the inputs."""

    def __init__(self, d: int = 16) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(4, d))
        self.norm_q, self.norm_kv = nn.LayerNorm(d), nn.LayerNorm(10)
        self.q, self.kv, self.o, self.head = nn.Linear(d, d), nn.Linear(10, 2 * d), nn.Linear(d, d), nn.Linear(d, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = self.latents.expand(x.shape[0], -1, -1)
        k, v = self.kv(self.norm_kv(x)).split(16, -1)
        q = self.q(self.norm_q(z))
        z = z + self.o(
            functional.scaled_dot_product_attention(*(t.unflatten(-1, (2, 8)).transpose(1, 2) for t in (q, k, v)))
            .transpose(1, 2)
            .flatten(2)
        )
        return self.head(z.mean(1))


class AdaptiveNorm(nn.Module):
    """DiT block: shift, scale and gate come from a condition."""

    def __init__(self, d: int = 8) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d, elementwise_affine=False)
        self.modulate = nn.Linear(5, 3 * d)
        self.up, self.down = nn.Linear(d, 16), nn.Linear(16, d)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale, gate = self.modulate(functional.silu(c)).chunk(3, -1)
        h = self.norm(x) * (1 + scale) + shift
        return x + gate * self.down(functional.gelu(self.up(h)))


class GraphAttention(nn.Module):
    """GAT: scores per edge, a softmax by scatter, messages by index_add."""

    def __init__(self, d: int = 8) -> None:
        super().__init__()
        self.lin = nn.Linear(5, d, bias=False)
        self.a_src, self.a_dst = nn.Linear(d, 1, bias=False), nn.Linear(d, 1, bias=False)
        self.head = nn.Linear(d, 2)

    def forward(self, x: Tensor, src: Tensor, dst: Tensor) -> Tensor:
        h = self.lin(x)
        e = torch.exp(functional.leaky_relu(self.a_src(h)[src] + self.a_dst(h)[dst], 0.2))
        total = torch.zeros(x.shape[0], 1).index_add(0, dst, e)
        out = torch.zeros_like(h).index_add(0, dst, h[src] * (e / total[dst]))
        return self.head(functional.elu(out))


class Bilinears(nn.Module):
    """nn.Bilinear of two towers, one of which is shared."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.pair, self.head = nn.Linear(6, 8), nn.Bilinear(8, 8, 4), nn.Linear(4, 1)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.head(torch.tanh(self.pair(functional.relu(self.trunk(a)), functional.relu(self.trunk(b)))))


class Variational(nn.Module):
    """Mean and log-variance heads, then a decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.enc, self.mu, self.logvar = nn.Linear(6, 16), nn.Linear(16, 4), nn.Linear(16, 4)
        self.dec1, self.dec2 = nn.Linear(4, 16), nn.Linear(16, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = functional.relu(self.enc(x))
        mu, logvar = self.mu(h), self.logvar(h)
        z = mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)
        return torch.sigmoid(self.dec2(functional.softplus(self.dec1(z)))), mu, logvar


class HyperNetwork(nn.Module):
    """A small network writes the weight of a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.h1, self.h2, self.out = nn.Linear(3, 8), nn.Linear(8, 30), nn.Linear(5, 2)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        w = self.h2(torch.tanh(self.h1(c))).view(-1, 6, 5)
        return self.out(functional.relu(torch.bmm(x.unsqueeze(1), w).squeeze(1)))


class LatentAttention(nn.Module):
    """DeepSeek-like: low-rank queries and key-values with a norm between."""

    def __init__(self, d: int = 16, r: int = 6) -> None:
        super().__init__()
        self.norm, self.q_norm, self.kv_norm = nn.RMSNorm(d), nn.RMSNorm(r), nn.RMSNorm(r)
        self.q_a, self.q_b = nn.Linear(d, r, bias=False), nn.Linear(r, d, bias=False)
        self.kv_a, self.kv_b, self.o = (
            nn.Linear(d, r, bias=False),
            nn.Linear(r, 2 * d, bias=False),
            nn.Linear(d, d, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q = self.q_b(self.q_norm(self.q_a(h))).unflatten(-1, (2, 8)).transpose(1, 2)
        k, v = self.kv_b(self.kv_norm(self.kv_a(h))).unflatten(-1, (2, 16)).transpose(1, 2).split(8, -1)
        a = (q @ k.transpose(-1, -2) / 8**0.5).softmax(-1) @ v
        return x + self.o(a.transpose(1, 2).flatten(2))


class FusedGroups(nn.Module):
    """Fused q|k|v by key-value group: two queries, one key, one value each."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.o = nn.LayerNorm(16), nn.Linear(16, 32, bias=False), nn.Linear(16, 16, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        p = self.qkv(self.norm(x)).view(b, n, 2, 4, 4)
        q = p[:, :, :, :2].reshape(b, n, 4, 4).transpose(1, 2)
        k, v = (p[:, :, :, i].repeat_interleave(2, 2).transpose(1, 2) for i in (2, 3))
        return x + self.o(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, 16))


class Spectral(nn.Module):
    """A learned complex filter in the frequency domain."""

    def __init__(self, d: int = 8) -> None:
        super().__init__()
        self.norm, self.filter = nn.LayerNorm(d), nn.Parameter(torch.randn(5, d, 2))
        self.fc1, self.fc2 = nn.Linear(d, 16), nn.Linear(16, d)

    def forward(self, x: Tensor) -> Tensor:
        f = torch.fft.rfft(self.norm(x), dim=1) * torch.view_as_complex(self.filter)
        return x + self.fc2(functional.gelu(self.fc1(torch.fft.irfft(f, n=8, dim=1))))


class Backwards(nn.Module):
    """Lists run from the end, a dictionary of parameters, a lambda, and a sine."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.p = nn.ParameterDict({"w": torch.randn(8, 2), "b": torch.zeros(2)})
        self.act = lambda t: torch.sin(t)

    def forward(self, x: Tensor) -> Tensor:
        for layer in reversed(self.layers):
            x = self.act(layer(x))
        return x @ self.p["w"] + self.p["b"]


class Stateless(nn.Module):
    """functional_call, maxout, and PReLU by channel."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.maxout, self.prelu, self.head = nn.Linear(6, 8), nn.Linear(8, 12), nn.PReLU(8), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.prelu(functional_call(self.inner, dict(self.inner.named_parameters()), (x,)))
        return self.head(self.maxout(h).unflatten(-1, (6, 2)).amax(-1))


class PixelUp(nn.Module):
    """Convolution, pixel shuffle, then tanh."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.up, self.head = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Conv2d(8, 32, 3, padding=1),
            nn.Conv2d(8, 3, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(
            self.head(functional.leaky_relu(functional.pixel_shuffle(self.up(functional.relu(self.conv(x))), 2), 0.2))
        )


class MixtureDensity(nn.Module):
    """Weights, means and widths of a mixture from one packed head."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 16), nn.Linear(16, 9)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pi, mu, sigma = self.head(torch.tanh(self.body(x))).chunk(3, -1)
        return pi.softmax(-1), mu, functional.softplus(sigma)


class Equilibrium(nn.Module):
    """One layer, iterated, with the input injected each time."""

    def __init__(self) -> None:
        super().__init__()
        self.inject, self.layer, self.norm, self.head = (
            nn.Linear(5, 8),
            nn.Linear(8, 8, bias=False),
            nn.LayerNorm(8),
            nn.Linear(8, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        u = self.inject(x)
        z = torch.zeros_like(u)
        for _ in range(4):
            z = torch.tanh(self.norm(self.layer(z) + u))
        return self.head(z)


class TwoBlockDecoder(nn.Module):
    """torch's decoder layers, before-norm, over a memory."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerDecoderLayer(16, 2, 32, batch_first=True, norm_first=True, activation="gelu")
        self.decoder = nn.TransformerDecoder(layer, 2)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        return self.decoder(x, memory)
