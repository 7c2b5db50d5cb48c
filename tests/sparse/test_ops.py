from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.utils.flop_counter import FlopCounterMode

from gebt.sparse import Pattern, SparseMatrix, matmul, sddmm, spmm
from gebt.sparse.backends import BACKENDS, using

MakePattern = Callable[..., Pattern]
WIDTHS = [0, 1, 3]
WANTED = [(True, True), (True, False), (False, True)]


def drawn(*shape: int, seed: int = 0, requires_grad: bool = True, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=dtype, generator=generator).requires_grad_(requires_grad)


def dense_of(pattern: Pattern, values: Tensor) -> Tensor:
    place = (pattern.row.long(), pattern.col.long())
    return values.new_zeros(pattern.shape).index_put(place, values)


def same_values_and_gradients(got: Tensor, expected: Tensor, inputs: tuple[Tensor, ...]) -> None:
    torch.testing.assert_close(got, expected)
    upstream = torch.randn(got.shape, dtype=got.dtype, generator=torch.Generator().manual_seed(9))
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    ours = torch.autograd.grad(got, wanted, upstream)
    theirs = torch.autograd.grad(expected, wanted, upstream)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("wanted", WANTED)
@pytest.mark.parametrize("width", WIDTHS)
def test_spmm_is_the_dense_product_with_its_gradients(
    size: tuple[int, int, int], width: int, wanted: tuple[bool, bool], make_pattern: MakePattern
) -> None:
    pattern = make_pattern(*size)
    values = drawn(pattern.nnz, requires_grad=wanted[0])
    x = drawn(size[1], width, seed=1, requires_grad=wanted[1])
    same_values_and_gradients(spmm(pattern, values, x), dense_of(pattern, values) @ x, (values, x))


@pytest.mark.parametrize("wanted", WANTED)
@pytest.mark.parametrize("width", WIDTHS)
def test_sddmm_samples_the_dense_product_with_its_gradients(
    size: tuple[int, int, int], width: int, wanted: tuple[bool, bool], make_pattern: MakePattern
) -> None:
    pattern = make_pattern(*size)
    a = drawn(size[0], width, requires_grad=wanted[0])
    b = drawn(size[1], width, seed=1, requires_grad=wanted[1])
    expected = (a @ b.t())[pattern.row.long(), pattern.col.long()]
    same_values_and_gradients(sddmm(pattern, a, b), expected, (a, b))


def test_zero_values_are_entries_and_get_gradients(make_pattern: MakePattern) -> None:
    pattern, x = make_pattern(4, 4, 9), drawn(4, 3)
    values = torch.zeros(9, dtype=torch.float64, requires_grad=True)
    spmm(pattern, values, x).sum().backward()
    assert torch.equal(values.grad, x.sum(1)[pattern.col.long()].detach())
    assert values.grad.all()


@pytest.mark.parametrize("size", [(5, 7, 12), (30, 3, 4), (3, 2, 0)], indirect=True)
def test_gradients_pass_gradcheck(size: tuple[int, int, int], make_pattern: MakePattern) -> None:
    pattern = make_pattern(*size)
    values, x, a = drawn(pattern.nnz), drawn(size[1], 2, seed=1), drawn(size[0], 2, seed=2)
    assert gradcheck(lambda v, x: spmm(pattern, v, x), (values, x))
    assert gradcheck(lambda a, b: sddmm(pattern, a, b), (a, x))


def test_second_gradients_are_refused(make_pattern: MakePattern) -> None:
    pattern = make_pattern(3, 4, 6)
    values, x, a = drawn(6), drawn(4, 2, seed=1), drawn(3, 2, seed=2)
    with pytest.raises(RuntimeError, match=r"spmm \(got create_graph=True\), expected first gradients only"):
        torch.autograd.grad(spmm(pattern, values, x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"sddmm \(got create_graph=True\), expected first gradients only"):
        torch.autograd.grad(sddmm(pattern, a, x).square().sum(), x, create_graph=True)


@pytest.mark.parametrize(("backend", "heads"), [("torch-csr", ()), ("compiled", (2,))])
def test_the_registered_ops_pass_opcheck(backend: str, heads: tuple[int, ...], make_pattern: MakePattern) -> None:
    if (why := BACKENDS[backend].missing()) is not None:
        pytest.skip(why)
    pattern = make_pattern(5, 4, 7)
    turned, permutation = pattern.transposed, pattern.permutation
    index = (pattern.crow, pattern.col, turned.crow, turned.col, permutation)
    values, x, a = drawn(7, *heads), drawn(4, *heads, 3, seed=1), drawn(5, *heads, 3, seed=2)
    tvalues, grad = values.detach()[permutation.long()], a.detach()
    # The last two dimensions of this one are the other way round in memory.
    turned_x = x.detach().transpose(0, -1).contiguous().transpose(0, -1)
    torch.library.opcheck(torch.ops.gebt.spmm.default, (*index, values, tvalues, x, backend))
    torch.library.opcheck(torch.ops.gebt.sddmm.default, (*index, a, x, backend))
    torch.library.opcheck(torch.ops.gebt.spmm_gradients.default, (*index, tvalues, turned_x, grad, backend))


def test_given_values_of_a_symmetric_matrix_change_nothing() -> None:
    linked = torch.rand(6, 6, generator=torch.Generator().manual_seed(0)) < 0.5
    pattern = SparseMatrix.from_dense((linked | linked.t()).double()).pattern
    symmetric = drawn(6, 6, requires_grad=False)
    symmetric = (symmetric + symmetric.t())[pattern.row.long(), pattern.col.long()].requires_grad_()
    x = drawn(6, 3)
    fast, general = spmm(pattern, symmetric, x, tvalues=symmetric), spmm(pattern, symmetric, x)
    same_values_and_gradients(fast, general, (symmetric, x))


@pytest.mark.parametrize("layout", ["transposed", "strided", "expanded"])
def test_any_memory_layout_of_x_gives_the_same_product(layout: str, make_pattern: MakePattern) -> None:
    pattern, values = make_pattern(5, 6, 11), drawn(11)
    x = {
        "transposed": drawn(4, 6).t(),
        "strided": drawn(6, 8)[:, ::2],
        "expanded": drawn(6, 1).expand(6, 4),
    }[layout]
    torch.testing.assert_close(spmm(pattern, values, x), spmm(pattern, values, x.detach().clone()))
    a = drawn(5, 4)
    torch.testing.assert_close(sddmm(pattern, a, x), sddmm(pattern, a, x.detach().clone()))


@pytest.mark.parametrize("heads", [(), (3,)], ids=["plain", "heads"])
@pytest.mark.parametrize("wanted", WANTED)
def test_flops_are_counted_as_two_an_entry_head_and_column(
    wanted: tuple[bool, bool], heads: tuple[int, ...], make_pattern: MakePattern
) -> None:
    pattern, width = make_pattern(9, 8, 30), 5
    values, x = drawn(30, *heads, requires_grad=wanted[0]), drawn(8, *heads, width, seed=1, requires_grad=wanted[1])
    once = 2 * 30 * math.prod(heads) * width
    with FlopCounterMode(display=False) as forward:
        out = spmm(pattern, values, x)
    assert forward.get_total_flops() == once
    with FlopCounterMode(display=False) as backward:
        out.sum().backward()
    assert backward.get_total_flops() == sum(wanted) * once
    a = drawn(9, *heads, width, requires_grad=wanted[0])
    with FlopCounterMode(display=False) as sampled:
        out = sddmm(pattern, a, x)
    assert sampled.get_total_flops() == once
    with FlopCounterMode(display=False) as backward:
        out.sum().backward()
    assert backward.get_total_flops() == sum(wanted) * once


@pytest.mark.parametrize("name", ["torch-csr", "compiled", "auto"])
def test_a_function_that_torch_compiles_gives_equal_results(name: str, make_pattern: MakePattern) -> None:
    if name != "auto" and (why := BACKENDS[name].missing()) is not None:
        pytest.skip(why)
    pattern = make_pattern(5, 4, 9)
    pattern.transposed, pattern.permutation  # noqa: B018 - built once, outside of what is compiled
    values, x = drawn(9), drawn(4, 3, seed=1)

    def loss(values: Tensor, x: Tensor) -> Tensor:
        return spmm(pattern, values, x).relu().square().sum()

    torch.compiler.reset()
    with using(name):
        got = torch.compile(loss, fullgraph=True, backend="aot_eager")(values, x)
    expected = loss(values, x)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(torch.autograd.grad(got, (values, x)), torch.autograd.grad(expected, (values, x)))


def test_an_exported_program_gives_equal_results(make_pattern: MakePattern) -> None:
    pattern = make_pattern(5, 4, 9)
    values = drawn(9, requires_grad=False)

    class Product(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return spmm(pattern, values, x).relu()

    x = drawn(4, 3, seed=1, requires_grad=False)
    program = torch.export.export(Product(), (x,))
    assert any(node.target == torch.ops.gebt.spmm.default for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(x), Product()(x))


def test_repeated_runs_give_equal_bits(make_pattern: MakePattern) -> None:
    pattern = make_pattern(50, 40, 600)

    def run() -> tuple[Tensor, ...]:
        values, x = drawn(600, dtype=torch.float32), drawn(40, 16, seed=1, dtype=torch.float32)
        out = spmm(pattern, values, x)
        return (out, *torch.autograd.grad(out.square().sum(), (values, x)))

    first = run()
    assert all(torch.equal(a, b) for _ in range(3) for a, b in zip(run(), first, strict=True))


def test_no_tensor_of_entries_times_columns_is_ever_made(
    make_pattern: MakePattern, largest_allocation: Callable[[Callable[[], object]], int]
) -> None:
    nodes, count, width = 100, 5000, 32
    pattern = make_pattern(nodes, nodes, count)
    values, x = drawn(count, dtype=torch.float32), drawn(nodes, width, seed=1, dtype=torch.float32)
    forbidden = count * width * values.element_size()

    def gathered() -> Tensor:
        return torch.zeros(nodes, width).index_add(0, pattern.row, values[:, None] * x[pattern.col])

    torch.testing.assert_close(spmm(pattern, values, x), gathered())
    assert largest_allocation(lambda: gathered().sum().backward()) >= forbidden
    limit = count * 16  # one index or value in double precision an entry, twice over
    assert largest_allocation(lambda: spmm(pattern, values, x).sum().backward()) <= limit
    assert largest_allocation(lambda: sddmm(pattern, x, x).sum().backward()) <= limit


@pytest.mark.parametrize("size", [(5, 7, 12), (3, 2, 0)], indirect=True)
def test_matmul_with_a_constant_matrix_has_a_gradient_to_x_alone(
    size: tuple[int, int, int], make_pattern: MakePattern
) -> None:
    matrix = SparseMatrix(make_pattern(*size), drawn(size[2], requires_grad=False))
    x = drawn(size[1], 3)
    same_values_and_gradients(matmul(matrix, x), matrix.to_dense() @ x, (x,))
    with FlopCounterMode(display=False) as counted:
        matmul(matrix, x).sum().backward()
    assert counted.get_total_flops() == 2 * (2 * size[2] * 3)


def test_what_has_no_gradient_to_its_right_side_never_builds_the_transpose(make_pattern: MakePattern) -> None:
    matrix = SparseMatrix(make_pattern(5, 7, 12), drawn(12, requires_grad=False))
    with torch.no_grad():
        matmul(matrix, drawn(7, 2))
        sddmm(matrix.pattern, drawn(5, 2), drawn(7, 2))
    sddmm(matrix.pattern, drawn(5, 2), drawn(7, 2, requires_grad=False))
    assert vars(matrix.pattern).keys() == {"crow", "col", "shape"}


def test_inputs_that_do_not_fit_are_refused(make_pattern: MakePattern) -> None:
    pattern = make_pattern(3, 4, 5)
    values, x, a = torch.rand(5), torch.rand(4, 2), torch.rand(3, 2)
    with pytest.raises(ValueError, match=r"x \(got shape \(3, 2\)\), expected a matrix of 4 rows"):
        spmm(pattern, values, a)
    with pytest.raises(ValueError, match=r"x \(got shape \(4,\)\), expected a matrix"):
        spmm(pattern, values, x[:, 0])
    with pytest.raises(ValueError, match=r"x \(got torch.float64\), expected torch.float32 as the values have"):
        spmm(pattern, values, x.double())
    with pytest.raises(ValueError, match=r"values \(got shape \(4,\)\), expected \(5,\), one for each entry"):
        spmm(pattern, values[:4], x)
    with pytest.raises(ValueError, match=r"a \(got shape \(4, 2\)\), expected a matrix of 3 rows"):
        sddmm(pattern, x, x)
    with pytest.raises(ValueError, match=r"b \(got torch.float64\), expected torch.float32"):
        sddmm(pattern, a, x.double())
    with pytest.raises(ValueError, match=r"x \(got a tensor on meta\), expected cpu as the pattern"):
        spmm(pattern, values, x.to("meta"))
    with pytest.raises(ValueError, match=r"values \(got a tensor on meta\), expected cpu as the pattern"):
        spmm(pattern, values.to("meta"), x)
    with pytest.raises(ValueError, match=r"pattern \(got \(3, 4\)\), expected a square one"):
        spmm(pattern, values, x, symmetric=True)


@pytest.mark.parametrize("widths", [(2, 3), (0, 3)])
def test_sddmm_refuses_sides_of_different_width(widths: tuple[int, int], make_pattern: MakePattern) -> None:
    with pytest.raises(ValueError, match="got"):
        sddmm(make_pattern(3, 4, 5), torch.rand(3, widths[0]), torch.rand(4, widths[1]))


def test_spmm_refuses_transposed_values_that_are_not_like_the_values(make_pattern: MakePattern) -> None:
    pattern, values, x = make_pattern(3, 4, 5), torch.rand(5), torch.rand(4, 2).requires_grad_()
    with pytest.raises(ValueError, match=r"tvalues \(got \(3,\) of torch.float32\), expected \(5,\) of torch.float32"):
        spmm(pattern, values, x, tvalues=values[:3])
    with pytest.raises(ValueError, match=r"tvalues \(got \(5,\) of torch.float64\), expected \(5,\) of torch.float32"):
        spmm(pattern, values, x, tvalues=values.double())
    with pytest.raises(ValueError, match=r"tvalues \(got a tensor on meta\), expected cpu"):
        spmm(pattern, values, x, tvalues=values.to("meta"))
