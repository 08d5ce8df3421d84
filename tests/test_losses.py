"""The terms of the loss, by hand."""

import math

import pytest
import torch

from im2mesh.dvr import losses


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def test_reduce():
    values = tensor([1, 2, 6])
    assert losses.reduce(values, "sum") == 9
    assert losses.reduce(values, "mean") == 3
    for method in ("sum", "mean"):
        assert losses.reduce(values[:0], method) == 0


def test_reduction_of_nothing_has_a_gradient():
    weight = tensor([1.0]).requires_grad_()
    losses.reduce(weight * tensor([]), "mean").backward()
    assert weight.grad.item() == 0


def test_photometric():
    rgb, true = tensor([[0.1, 0.5, 1], [0, 0, 0]]), tensor([[0.3, 0.4, 0], [0, 0, 0]])
    torch.testing.assert_close(losses.photometric(rgb, true), tensor([1.3, 0]))


def patch(size, **pixels):
    """A patch (1, size^2, 3), zero but for pixels named ``r<row>c<column>``."""
    image = torch.zeros(size, size, 3, dtype=torch.float64)
    for name, color in pixels.items():
        image[int(name[1]), int(name[3])] = tensor(color)
    return image.view(1, -1, 3)


@pytest.mark.parametrize("size", [2, 3])
def test_image_gradient(size):
    """Right and lower neighbour of the first pixel, nothing else, per channel."""
    zero = patch(size)
    right, below = patch(size, r0c1=[3, 0, 1]), patch(size, r1c0=[4, 0, 2])
    diagonal = patch(size, r1c1=[5, 5, 5])
    first = patch(size, r0c0=[1, 2, 2])
    both = patch(size, r0c1=[3, 0, 1], r1c0=[4, 0, 2])

    def value(a, b):
        return losses.image_gradient(a, b, size).item()

    assert value(right, zero) == value(zero, right) == 4
    assert value(below, zero) == 6
    assert value(diagonal, zero) == 0
    assert value(first, zero) == pytest.approx(5 * math.sqrt(2))
    assert value(both, zero) == pytest.approx(5 + math.sqrt(5))
    assert value(both, right) == 6  # the difference of the gradients, not of their lengths
    assert value(right, below) == pytest.approx(5 + math.sqrt(5))
    assert value(both + 0.7, both) == pytest.approx(0, abs=1e-12)  # brightness does not matter


def test_image_gradient_beyond_the_neighbours_does_not_count():
    far = patch(3, r0c2=[1, 1, 1], r2c0=[1, 1, 1], r2c2=[1, 1, 1], r1c2=[1, 1, 1])
    assert losses.image_gradient(far, patch(3), 3).item() == 0


def test_image_gradient_gives_one_value_per_patch():
    torch.manual_seed(0)
    rgb, true = torch.rand(5, 4, 3), torch.rand(5, 4, 3)
    values = losses.image_gradient(rgb, true, 2)
    assert values.shape == (5,)
    for i in range(5):
        one = losses.image_gradient(rgb[i : i + 1], true[i : i + 1], 2)
        torch.testing.assert_close(values[i : i + 1], one)
    assert losses.image_gradient(rgb[:0], true[:0], 2).shape == (0,)


def test_depth():
    torch.testing.assert_close(losses.depth(tensor([1, 2.5]), tensor([1.5, 2])), tensor([0.5, 0.5]))


def test_depth_as_points():
    origins, directions = tensor([[1, 2, 3], [0, 0, 0]]), tensor([[2, -1, 2], [0.1, 0, 0]])
    predicted, true = tensor([1, 5]), tensor([1.5, 2])
    points, true_points = (origins + d[:, None] * directions for d in (predicted, true))
    values = losses.depth_as_points(predicted, true, directions)
    torch.testing.assert_close(values, (points - true_points).norm(dim=1))
    torch.testing.assert_close(values, tensor([1.5, 0.3]))


def test_normal_smoothness():
    a, b = tensor([[0, 0, 1], [1, 0, 0], [1, 0, 0]]), tensor([[0, 0, 1], [0, 1, 0], [-1, 0, 0]])
    torch.testing.assert_close(losses.normal_smoothness(a, b), tensor([0, math.sqrt(2), 2]))


def test_occupancy():
    logits = tensor([-3, 0, 0.7, 40])
    free, occupied = losses.freespace(logits), losses.occupied(logits)
    expected = [math.log1p(math.exp(-3)), math.log(2), math.log1p(math.exp(0.7)), 40]
    torch.testing.assert_close(free, tensor(expected))  # -log(1 - sigmoid)
    torch.testing.assert_close(occupied, free - logits, atol=1e-12, rtol=0)


def test_occupancy_of_large_logits():
    """No overflow, and a gradient, on either side."""
    logits = torch.tensor([-1000.0, 1000.0], requires_grad=True)
    assert losses.freespace(logits).tolist() == [0, 1000]
    assert losses.occupied(logits).tolist() == [1000, 0]
    (gradient,) = torch.autograd.grad(losses.freespace(logits).sum(), logits)
    assert gradient.tolist() == [0, 1]


@pytest.mark.parametrize(
    "term, shape",
    [
        (losses.photometric, (6, 3)),
        (lambda a, b: losses.image_gradient(a, b, 2), (6, 4, 3)),
        (losses.depth, (6,)),
        (lambda a, b: losses.depth_as_points(a, b, torch.ones(6, 3).double()), (6,)),
        (losses.normal_smoothness, (6, 3)),
    ],
    ids=["photometric", "image_gradient", "depth", "depth_as_points", "normal_smoothness"],
)
def test_gradients(term, shape):
    torch.manual_seed(0)
    a, b = torch.randn(2, *shape).double()
    a.requires_grad_()
    assert torch.autograd.gradcheck(lambda a: term(a, b), a)
    assert torch.isfinite(torch.autograd.grad(term(a, a.detach()).sum(), a)[0]).all()


@pytest.mark.parametrize(
    "term, shape",
    [(lambda a, b: losses.image_gradient(a, b, 2), (6, 4, 3)), (losses.normal_smoothness, (6, 3))],
    ids=["image_gradient", "normal_smoothness"],
)
def test_norm_of_nothing_has_gradient_zero(term, shape):
    a = torch.ones(shape, requires_grad=True)
    value = term(a, torch.ones(shape)).sum()
    (gradient,) = torch.autograd.grad(value, a)
    assert value.item() == 0 and gradient.count_nonzero() == 0
