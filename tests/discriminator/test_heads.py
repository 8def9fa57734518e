"""The trainable heads against slow references."""

import math

import pytest
import torch
from torch import nn

from discriminator.heads import DiscriminatorHeads, Head, VirtualBatchNorm, virtual_batch_norm

C, N, D = 12, 16, 10


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def unit(*shape, seed=0):
    return nn.functional.normalize(rand(*shape, seed=seed), dim=-1)


@pytest.mark.parametrize(("batch", "groups"), [(16, [8, 8]), (8, [8]), (11, [8, 3]), (9, [8, 1]), (5, [5]), (1, [1])])
def test_virtual_batch_norm_against_batch_norm(batch, groups):
    """Each group equals an independent nn.BatchNorm1d in training mode, and biased statistics by hand."""
    x = 3 * rand(batch, C, N) + rand(1, C, 1, seed=1)
    weight, bias = rand(C, seed=2), rand(C, seed=3)
    out = virtual_batch_norm(x, weight, bias)
    start = 0
    for size in groups:
        group = x[start : start + size]
        reference = nn.BatchNorm1d(C, track_running_stats=False)
        with torch.no_grad():
            reference.weight.copy_(weight)
            reference.bias.copy_(bias)
        torch.testing.assert_close(out[start : start + size], reference.train()(group))
        mean, var = group.mean((0, 2)), group.var((0, 2), correction=0)
        manual = (group - mean[:, None]) / (var + 1e-5).sqrt()[:, None] * weight[:, None] + bias[:, None]
        torch.testing.assert_close(out[start : start + size], manual, rtol=1e-4, atol=1e-5)
        start += size


def test_virtual_batch_norm_ignores_other_groups_and_mode():
    """Changing the second group leaves the first alone, and evaluation mode computes the same."""
    norm, x = VirtualBatchNorm(C), rand(16, C, N)
    other = torch.cat([x[:8], 5 * x[8:] + 1])
    assert torch.equal(norm(x)[:8], norm(other)[:8])
    assert torch.equal(norm.train()(x), norm.eval()(x))


def sigma(weight):
    return torch.linalg.matrix_norm(weight.flatten(1), 2)


def slow_head(head, x, condition):
    """The head written out: loops over tokens and taps of the kernel, exact singular values, wrapped indices."""

    def convolve(conv, x):
        raw = conv.parametrizations.weight.original
        weight = raw / sigma(raw)
        k = weight.shape[-1]
        out = torch.zeros(x.shape[0], weight.shape[0], x.shape[2])
        for n in range(x.shape[2]):
            for j in range(k):
                out[:, :, n] += x[:, :, (n + j - k // 2) % x.shape[2]] @ weight[:, :, j].T
        return out if conv.bias is None else out + conv.bias[:, None]

    def normalize(norm, x):
        rows = []
        for start in range(0, len(x), 8):
            group = x[start : start + 8]
            mean = group.mean((0, 2), keepdim=True)
            var = (group - mean).square().mean((0, 2), keepdim=True)
            rows.append((group - mean) / (var + 1e-5).sqrt() * norm.weight[:, None] + norm.bias[:, None])
        return torch.cat(rows)

    def block(module, x):
        y = normalize(module.norm, convolve(module.conv, x))
        return torch.where(y > 0, y, 0.2 * y)

    h = block(head.pointwise, x)
    h = (block(head.neighborhood, h) + h) / 2**0.5
    out = convolve(head.classifier, h)
    if condition is None:
        return out[:, 0]
    projected = condition @ head.projection.weight.T + head.projection.bias
    return (projected[:, :, None] * out).sum(1) / 8


def converge(module, x, condition):
    """Let the power iterations of all spectral norms converge, and give every parameter a value of its own."""
    with torch.no_grad():
        for i, parameter in enumerate(module.parameters()):
            parameter.add_(0.3 * rand(*parameter.shape, seed=i))
        for _ in range(200):
            module(x, condition)
    return module.eval()


@pytest.mark.parametrize("condition_dim", [0, D])
def test_head_against_slow_reference(condition_dim):
    """The whole head, with and without condition, for a batch that 8 does not divide."""
    torch.manual_seed(0)
    x, condition = rand(11, C, N), unit(11, D) if condition_dim else None
    head = converge(Head(C, condition_dim), x, condition)
    torch.testing.assert_close(head(x, condition), slow_head(head, x, condition), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("tokens", [4, 5, 8])
def test_kernel_wider_than_the_tokens(tokens):
    """The kernel of 9 wraps around fewer than 9 tokens, as the modular indices of the reference do."""
    torch.manual_seed(0)
    x = rand(3, C, tokens)
    head = converge(Head(C), x, None)
    torch.testing.assert_close(head(x), slow_head(head, x, None), rtol=1e-3, atol=1e-4)


def test_too_few_tokens_are_refused():
    """Fewer tokens than the kernel reaches to one side: an error that says what to change."""
    with pytest.raises(ValueError, match="at least 4 tokens, got 1"):
        Head(C)(rand(2, C, 1))


def test_circular_shift_equivariance():
    """Rolling the tokens rolls the logits: nothing marks the ends of the sequence."""
    head = Head(C).eval()
    x = rand(4, C, N)
    torch.testing.assert_close(head(x.roll(3, dims=2)), head(x).roll(3, dims=1), rtol=1e-4, atol=1e-5)


def test_spectral_norms_are_one():
    """After a few power iterations the largest singular value of all three convolutions is 1."""
    heads = DiscriminatorHeads(C, 2, D)
    features, condition = (rand(8, C, N), rand(8, C, N, seed=1)), unit(8, D)
    with torch.no_grad():
        for _ in range(100):
            heads(features, condition)
    heads.eval()
    for head in heads.heads:
        for conv in (head.pointwise.conv, head.neighborhood.conv, head.classifier):
            assert abs(float(sigma(conv.weight.detach())) - 1) < 1e-3


def test_eval_mode_leaves_buffers_alone():
    """Power iterations update u and v in training mode only, one a forward pass."""
    torch.manual_seed(0)
    heads, x = DiscriminatorHeads(C, 1), (rand(4, C, N),)
    before = {k: v.clone() for k, v in heads.state_dict().items()}
    heads.eval()(x)
    assert all(torch.equal(before[k], v) for k, v in heads.state_dict().items())
    spectral = heads.heads[0].neighborhood.conv.parametrizations.weight
    matrix = spectral.original.detach().flatten(1)
    u = nn.functional.normalize(matrix @ spectral[0]._v, dim=0)
    v = nn.functional.normalize(matrix.T @ u, dim=0)
    heads.train()(x)
    torch.testing.assert_close(spectral[0]._u, u)
    torch.testing.assert_close(spectral[0]._v, v)


@pytest.mark.parametrize(("width", "condition_dim"), [(64, 64), (384, 1024), (384, 2048)])
def test_logits_start_at_order_one(width, condition_dim):
    """Features of any scale and a condition of unit vectors: logits spread by about 1, whatever the sizes."""
    torch.manual_seed(0)
    half = condition_dim // 2
    condition = torch.cat([unit(16, half), unit(16, half, seed=1)], 1)
    features = (5 * rand(16, width, 64), 0.1 * rand(16, width, 64))
    with torch.no_grad():
        logits = DiscriminatorHeads(width, 2, condition_dim)(features, condition)
    assert 0.2 < float(logits.std()) < 2.0


def test_condition_acts_by_inner_product():
    """The logit is affine in the condition: D(x, 0) + [D(x, a) - D(x, 0)] + [D(x, b) - D(x, 0)] = D(x, a + b)."""
    head, x = Head(C, D).eval(), rand(4, C, N)
    nn.init.normal_(head.projection.bias)
    a, b, zero = unit(4, D), unit(4, D, seed=1), torch.zeros(4, D)
    torch.testing.assert_close(head(x, a + b), head(x, a) + head(x, b) - head(x, zero))
    assert (head(x, a) - head(x, b)).abs().max() > 0.1


def test_heads_are_independent_and_stacked():
    """Row k of the result is head k of tap k, and a change of one tap moves no other head."""
    heads, c = DiscriminatorHeads(C, 3, D).eval(), unit(4, D)
    taps = [rand(4, C, N, seed=k) for k in range(3)]
    logits = heads(tuple(taps), c)
    assert logits.shape == (4, 3, N)
    for k in range(3):
        assert torch.equal(logits[:, k], heads.heads[k](taps[k], c))
    moved = heads((taps[0], taps[1] + rand(4, C, N, seed=9), taps[2]), c)
    assert torch.equal(moved[:, [0, 2]], logits[:, [0, 2]])
    assert not torch.equal(moved[:, 1], logits[:, 1])


def test_fp32_island():
    """Under bf16 autocast the heads give the float32 result bit for bit, and bf16 features come out in float32."""
    heads, x, c = DiscriminatorHeads(C, 1, D).eval(), rand(4, C, N), unit(4, D)
    expected = heads((x,), c)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(heads((x,), c), expected)
        assert torch.equal(heads((x.bfloat16(),), c), heads((x.bfloat16().float(),), c))
    assert heads((x.bfloat16(),), c).dtype == torch.float32


@pytest.mark.parametrize(("condition_dim", "given", "taps"), [(0, D, 2), (D, None, 2), (D, D + 1, 2), (D, D, 1)])
def test_wrong_inputs_are_refused(condition_dim, given, taps):
    """A condition where none is expected, none where one is, another size, or a missing tap."""
    heads = DiscriminatorHeads(C, 2, condition_dim)
    condition = None if given is None else unit(2, given)
    with pytest.raises(ValueError, match="2 feature tensors and a condition of size"):
        heads(tuple(rand(2, C, N) for _ in range(taps)), condition)


def test_double_backward_after_two_forwards():
    """R1 as in training: two forward passes, then one backward through the squared gradient of the first.

    The in-place update of u and v by the second pass must not disturb the first one's graph; the gradient of the
    whole loss with respect to each parameter equals central differences, with the power iteration frozen.
    """
    torch.manual_seed(0)
    heads = DiscriminatorHeads(4, 2, 3)
    real = tuple(rand(3, 4, 6, seed=k).requires_grad_() for k in range(2))
    fake = tuple(rand(3, 4, 6, seed=k + 5) for k in range(2))
    c = unit(3, 3)

    def loss(forward, real, fake, c):
        real_logits, fake_logits = forward(real, c), forward(fake, c)
        gradients = torch.autograd.grad(real_logits.sum(), real, create_graph=True)
        r1 = sum(g.square().sum((1, 2)).mean() for g in gradients)
        return torch.relu(1 - real_logits).mean() + torch.relu(1 + fake_logits).mean() + r1

    loss(heads, real, fake, c).backward()  # in training mode u and v change between the two passes
    assert all(p.grad.isfinite().all() for p in heads.parameters())

    heads.double().eval().zero_grad()
    real = tuple(x.detach().double().requires_grad_() for x in real)
    fake, c = tuple(x.double() for x in fake), c.double()

    def double_forward(features, condition):  # past the fp32 island, for differences finer than float32
        return torch.stack([head(x, condition) for head, x in zip(heads.heads, features)], 1)

    loss(double_forward, real, fake, c).backward()
    generator = torch.Generator().manual_seed(0)
    directions = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in heads.parameters()]
    slope = sum((p.grad * d).sum() for p, d in zip(heads.parameters(), directions))
    values = []
    for step in (1e-6, -1e-6):
        with torch.no_grad():
            for p, d in zip(heads.parameters(), directions):
                p.add_(step * d)
        values.append(loss(double_forward, real, fake, c).detach())
        with torch.no_grad():
            for p, d in zip(heads.parameters(), directions):
                p.sub_(step * d)
    assert math.isclose(float(values[0] - values[1]) / 2e-6, float(slope), rel_tol=1e-5)


def test_r1_gradient_in_training_mode_is_that_of_the_first_pass():
    """A second forward pass before backward leaves the first one's gradients as they would be without it."""
    x = (rand(4, C, N).requires_grad_(),)

    def penalty_gradients(second_pass):
        torch.manual_seed(0)
        heads = DiscriminatorHeads(C, 1)
        logits = heads(x)
        if second_pass:
            heads((rand(4, C, N, seed=7),))
        (gradient,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
        gradient.square().sum().backward(inputs=list(heads.parameters()))
        return [p.grad for p in heads.parameters()]

    for a, b in zip(penalty_gradients(False), penalty_gradients(True)):
        assert (a is None and b is None) or torch.equal(a, b)
