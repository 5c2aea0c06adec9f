"""Break minicnn on purpose, in one place at a time: does the suite notice every time?

    python benchmarks/mutation.py

A table below says what to write in place of what, in which file, and which tests should notice: an
index that is off by one, axes that are swapped, a bias that is left out, ties that go to another
winner, a scale that is wrong. Each change is made in a copy of the checkout, the tests run there,
and at least one must fail. What survives ends in an error: it asks for a test that is missing. So
does a row whose text is no longer in its file, or is there twice.
"""

import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import harness

ROOT = Path(__file__).parents[1]
DEADLINE = 600  # seconds that the tests of one change may take; one that hangs is noticed

# What pytest gets; the fewest tests that should notice.
ACTIVATION = "tests/layers/test_activation.py"
BAD_INPUT = "tests/test_bad_input.py"
BUILT_BEFORE = "tests/layers/test_built_before.py"
CACHE = "tests/kernels/test_cache.py"
CONFORMANCE = "tests/layers/test_conformance.py"
CONV = "tests/kernels/test_conv.py"
CONV2D = "tests/layers/test_conv2d.py"
DENSE = "tests/layers/test_dense.py"
DENSE_LISTS = "tests/kernels/test_fast_paths.py -k dense_gradients"
DROPOUT = "tests/layers/test_dropout.py"
ELEMENTWISE = "tests/kernels/test_elementwise.py"
FAST = "tests/kernels/test_fast_paths.py"
FUSED_DROPOUT = "tests/kernels/test_fast_paths.py -k dropout_in_a_dense_layer"
FUSION = "tests/layers/test_fusion.py"
GEMM = "tests/kernels/test_gemm.py"
GRAPH = "tests/estimator/test_graph.py"
INITIALIZERS = "tests/test_initializers.py"
JIT = "tests/kernels/test_jit.py"
LOSSES = "tests/test_losses.py"
MAX_POOLING = "tests/layers/test_max_pooling2d.py"
METRICS = "tests/test_metrics.py"
NUMBERS = "tests/test_numbers.py"
OPS = "tests/test_ops.py"
OPTIMIZERS = "tests/test_optimizers.py"
PARAMETER = "tests/core/test_parameter.py"
POOLING = "tests/kernels/test_pooling.py"
SEQUENTIAL = "tests/layers/test_sequential.py"
SHAPE = "tests/layers/test_shape.py"
TRAINABLE = "tests/layers/test_trainable.py"
THREADS = "tests/kernels/test_threads.py"
UPDATE = "tests/kernels/test_update.py"
WINDOW = "tests/kernels/test_window.py"

# (what is wrong, file, text, text in its place, tests)
MUTATIONS = [
    # layers, forward and backward
    ("missing bias", "layers/affine.py",
     "if self.bias is None else self.bias.value", "", DENSE),
    ("bias gradient without the first row", "layers/dense.py",
     "_rows(dy), self.bias", "_rows(dy)[1:], self.bias", DENSE),
    ("rows of a batch counted wrong for dropout", "layers/dense.py",
     "math.prod(x.shape[1:-1])", "1", FUSION),
    ("missing bias", "layers/affine.py",
     "if self.bias is None else self.bias.value", "", CONV2D),
    ("missing gradient of the bias", "layers/conv2d.py",
     'return self.bias.writable("grad")', "return np.empty(self.filters, self.dtype)", CONV2D),
    ("swapped axes of the inputs", "layers/sliding.py",
     "(x.transpose(0, 2, 3, 1))", "(x.transpose(0, 3, 2, 1))", CONV2D),
    ("strides of 1 for those of the window", "layers/max_pooling2d.py",
     "self.size if strides", "(1, 1) if strides", MAX_POOLING),
    ("swapped axes of the gradient", "layers/max_pooling2d.py",
     "return self.data_format.from_nhwc(dx)", "return dx", MAX_POOLING),
    ("gradient without the mask", "layers/dropout.py",
     'return dy if key is None else self._drop(dy, key, ctx, "dx")', "return dy", DROPOUT),
    ("mask of the first rows for every batch", "layers/dropout.py",
     "ctx.first_row if by_row else 0", "0", DROPOUT),
    ("wrong scale", "layers/dropout.py",
     "np.multiply(x, mask, out", "np.multiply(x, 1, out", DROPOUT),
    ("NaN is not dropped", "layers/dropout.py", ", where=mask != 0)", ")", DROPOUT),
    ("two layers train one array of an initializer", "layers/layer.py",
     "value = value.copy()", "pass", f"{BAD_INPUT} -k initializer_keeps"),
    ("a build that fails leaves what is inside built", "core/op.py",
     "for op in parts(op)]", "for op in [op]]", f"{CONFORMANCE} -k fails_to_build"),
    ("a built layer is built again", "layers/layer.py",
     "if built is None or not (isinstance(op, Layer) or op.parameters):", "if True:",
     BUILT_BEFORE),
    ("a frozen layer is trained", "core/parameter.py",
     "self._trainable and not self.frozen", "self._trainable", TRAINABLE),
    ("a read-only array is written into", "core/parameter.py",
     "if not array.flags.writeable:", "if False:", PARAMETER),
    ("gradient past the activation", "layers/activation.py",
     "return self.op.backward(dy, ctx, need_dx)", "return dy", ACTIVATION),
    ("swapped axes", "layers/shape.py",
     "x.reshape(len(x), *self.row)", 'x.reshape(len(x), *self.row, order="F")', SHAPE),
    ("one layer left out on the way back", "layers/sequential.py",
     "self._chain[1:]", "self._chain[2:]", SEQUENTIAL),
    ("gradient that nobody asked for", "layers/sequential.py",
     "self._chain[0].backward(dy, ctx, need_dx)", "self._chain[0].backward(dy, ctx)", CONFORMANCE),
    ("wrong scale of the gradient", "layers/dense.py",
     "1.0 if dropout is None else 1.0 / (1.0 - dropout[1])", "1.0", FUSION),
    ("gradient past ReLU", "layers/conv2d.py",
     "y if relu else None, code", "None, code", FUSION),
    ("windows of 3x3 taken for 2x2", "layers/fusion.py",
     "pool.size == pool.strides == (2, 2)", "pool.strides == (2, 2)", FUSION),
    # ops, losses, optimizers, graph
    ("sigmoid: half of the derivative", "ops.py", "dy * y * (1 - y)", "dy * y", OPS),
    ("sigmoid: the half below zero is that above", "ops.py",
     "np.where(x < 0, e, one)", "one", NUMBERS),
    ("tanh: square left out", "ops.py", "(1 - y * y)", "(1 - y)", OPS),
    ("softmax: wrong axis", "ops.py",
     "(dy * y).sum(axis=self.axis,", "(dy * y).sum(axis=0,", OPS),
    ("argmax: ties go to the last", "ops.py", "np.argmax(x, axis=self.axis)",
     "x.shape[self.axis] - 1 - np.argmax(np.flip(x, self.axis), axis=self.axis)", OPS),
    ("rows of weight 0 count", "losses.py",
     "max(int(np.count_nonzero(w)), 1)", "len(w)", LOSSES),
    ("a label of zero times infinity", "losses.py",
     "where=labels > 0", "where=labels >= 0", NUMBERS),
    ("wrong scale of smoothing", "losses.py",
     "+ smoothing / classes", "+ smoothing", LOSSES),
    ("scale of the gradient left out", "losses.py",
     "ctx[self] if dy == 1 else dy * ctx[self]", "ctx[self]", LOSSES),
    ("Adam: steps off by one", "optimizers.py", "self.iterations + 1", "self.iterations + 2",
     OPTIMIZERS),
    ("Adam: epsilon under another root", "optimizers.py", "root * self.epsilon", "self.epsilon",
     OPTIMIZERS),
    ("Adam: decay scaled", "optimizers.py", "self.weight_decay / correction", "self.weight_decay",
     OPTIMIZERS),
    ("a schedule one step early", "optimizers.py",
     "(step // self.every)", "((step + 1) // self.every)", OPTIMIZERS),
    ("clipped to another norm", "optimizers.py", "g *= max_norm / norm\n", "g *= 1 / norm\n",
     OPTIMIZERS),
    ("gradient of a tensor used twice not added", "estimator/graph.py",
     "gradient if known is None else known + gradient", "gradient", GRAPH),
    ("two parameters of one name become one", "estimator/graph.py",
     "if own.name in self.parameters:", "if False:", f"{BAD_INPUT} -k parameters_of_one_name"),
    ("scale of the loss left out", "estimator/graph.py", "{loss: scale}", "{loss: 1.0}", GRAPH),
    ("wrong limit", "initializers.py", "math.sqrt(6 / sum", "math.sqrt(3 / sum", INITIALIZERS),
    ("swapped fans", "initializers.py",
     "return taps * inputs, taps * outputs", "return taps * outputs, taps * inputs", INITIALIZERS),
    ("rows are the predicted classes", "metrics.py",
     "counts.reshape(size, size)", "counts.reshape(size, size).T", METRICS),
    # kernels
    ("larger half of the padding first", "kernels/window.py",
     "return total // 2, out", "return (total + 1) // 2, out", WINDOW),
    ("one chunk too many", "kernels/threads.py",
     "(chunk := self.next()) < self.chunks", "(chunk := self.next()) <= self.chunks", THREADS),
    ("returns while workers compute", "kernels/threads.py",
     "while len(self.ended) < len(self.begun):", "while False:", THREADS),
    ("ReLU loses NaN", "kernels/elementwise.py",
     "0 if source[e] <= 0 else source[e]", "source[e] if source[e] > 0 else 0", ELEMENTWISE),
    ("ReLU: gradient at zero", "kernels/elementwise.py",
     "if value[e] > 0 else 0", "if value[e] >= 0 else 0", ELEMENTWISE),
    ("dropout: rows counted in the part", "kernels/elementwise.py",
     "scale, first_row + r)", "scale, r)", ELEMENTWISE),
    ("dropout: wrong scale", "kernels/elementwise.py",
     "type(1.0 / (1.0 - rate))", "type(1.0)", ELEMENTWISE),
    ("sum of the last row alone", "kernels/elementwise.py",
     "part[u] += row[u]", "part[u] = row[u]", ELEMENTWISE),
    ("sums of two blocks: the second alone", "kernels/elementwise.py",
     "to[c] += part[c]", "to[c] = part[c]", f"{NUMBERS} -k many_rows"),
    ("sums of blocks in a chain, not a tree", "kernels/elementwise.py",
     "(blocks % 2 == 0 or last)", "True", f"{NUMBERS} -k million_rows"),
    ("a dense layer's gradient in one sum", "kernels/dense/dense.py",
     "(1, d), (u, 1), n, BLOCK,", "(1, d), (u, 1), n, max(n, 1),", f"{NUMBERS} -k many_rows"),
    ("a list of gradients in one sum", "kernels/dense/lists.py",
     "range(0, np.int64(length[j]), BLOCK)", "range(0, min(1, np.int64(length[j])))",
     f"{NUMBERS} -k many_rows"),
    ("code of every element type under one name", "kernels/cache.py",
     "kind = repr((sig, codegen.magic_tuple(), VECTOR_BYTES)).encode()",
     'kind = b""', f"{JIT} -k at_once"),
    ("damaged code is loaded", "kernels/cache.py",
     "if seal == self._seal(name, body):", "if True:", CACHE),
    ("code that others can write is loaded", "kernels/cache.py",
     "by_others = status.st_mode & stat.S_IWOTH", "by_others = 0", CACHE),
    ("code of another user is loaded", "kernels/cache.py",
     "status.st_uid in (*owners, os.geteuid())", "True", CACHE),
    ("SGD without decay", "kernels/update.py",
     "rate * (g_[e] + decay * w_[e])", "rate * g_[e]", UPDATE),
    ("Nesterov: velocity not scaled", "kernels/update.py",
     "rate * (slope + mu * v_[e])", "rate * (slope + v_[e])", UPDATE),
    ("Adam: square left out", "kernels/update.py",
     "rest2 * g_[e] * g_[e]", "rest2 * g_[e]", UPDATE),
    ("pooling: ties go to the last", "kernels/pooling.py",
     "fresh or value[c] > best[c]", "fresh or value[c] >= best[c]", POOLING),
    ("pooling: NaN loses", "kernels/pooling.py",
     " or (value[c] != value[c] and best[c] == best[c])", "", POOLING),
    ("pooling: overlapping gradients not added", "kernels/pooling.py",
     "target[c] += gradient[c] if tap[c] == number else 0",
     "target[c] = gradient[c] if tap[c] == number else target[c]", POOLING),
    ("pooling: gradient added to what was there", "kernels/pooling.py",
     "dx[begin:end] = 0\n", "\n", POOLING),
    ("columns: taps swapped", "kernels/conv/im2col.py",
     "iy = oy * sh + ky * dh - top\n            for kx in range(0, kw, run):\n"
     "                ix = ox * sw + kx * dw - left\n                begin, end = _inside("
     "iy, height, ix, width, run)\n                source",
     "iy = oy * sh + ky * dh - left\n            for kx in range(0, kw, run):\n"
     "                ix = ox * sw + kx * dw - top\n                begin, end = _inside("
     "iy, height, ix, width, run)\n                source", CONV),
    ("columns: off by one at the right edge", "kernels/conv/im2col.py",
     "min(run, width - ix)", "min(run, width - ix - 1)", CONV),
    ("columns: overlapping gradients not added", "kernels/conv/im2col.py",
     "target[e] += source[e]", "target[e] = source[e]", CONV),
    ("product: last column of a panel left out", "kernels/gemm.py",
     "load_some(source, j, n - j)", "load_some(source, j, n - j - 1)", GEMM),
    ("product: last column of a transposed panel left out", "kernels/gemm.py",
     "source[j * b_col] if j < n else 0", "source[j * b_col] if j < n - 1 else 0", GEMM),
    ("product: last row of a tile is the one above", "kernels/simd.py",
     "last = builder.sub(height_, _index(1))", "last = builder.sub(height_, _index(2))", GEMM),
    ("product: a column too few", "kernels/simd.py",
     "return builder.sub(width_, _index(v * vector.lanes))",
     "return builder.sub(width_, _index(v * vector.lanes + 1))", GEMM),
    ("product: sums begin anew behind the first part", "kernels/gemm.py",
     "        s, s_row, s_col = c, c_row, 1", "        pass", CONV),
    ("squares are not turned", "kernels/simd.py",
     "pair = rows[i], rows[i + size]", "pair = rows[i + size], rows[i]", GEMM),
    ("two roundings for one", "kernels/simd.py",
     'return _call(builder, "llvm.fma", x.type, x.type, [x, y, z])',
     "return builder.fadd(builder.fmul(x, y), z)", GEMM),
    ("fused pooling: ties go to the last", "kernels/simd.py",
     'builder.fcmp_ordered(">", y[0], x[0])', 'builder.fcmp_ordered(">=", y[0], x[0])', FAST),
    ("fused pooling: dead outputs have a winner", "kernels/simd.py",
     "_same(code_type, ZEROED)", "_same(code_type, 0)", FAST),
    ("fused pooling: outputs of zero live", "kernels/simd.py",
     'negative = builder.fcmp_ordered("<=", value, zero)',
     'negative = builder.fcmp_ordered("<", value, zero)', FAST),
    ("fused ReLU loses NaN", "kernels/simd.py",
     'negative = builder.fcmp_ordered("<=", arguments[0], zero)',
     'negative = builder.fcmp_unordered("<=", arguments[0], zero)', FAST),
    ("the last lanes are not written", "kernels/simd.py",
     "return builder.icmp_signed(\"<\", numbers, _splat(builder, count, lanes))",
     "return builder.icmp_signed(\"<\", numbers, _splat(builder, builder.sub(count, _index(1)), "
     "lanes))", FAST),
    ("dense: missing bias for few rows", "kernels/dense/dense.py",
     "y[i * u + q] = b[q]", "y[i * u + q] = 0", GEMM),
    ("dense: one row of w left out", "kernels/dense/dense.py",
     "range(min(4, d - p))", "range(min(3, d - p))", GEMM),
    ("dense: ReLU loses NaN", "kernels/dense/dense.py",
     "0 if row[q] <= 0 else row[q]", "row[q] if row[q] > 0 else 0", GEMM),
    ("dense: mask of the first element for every row", "kernels/dense/dense.py",
     "i % per_row * u + j", "j", FUSED_DROPOUT),
    ("convolution: bias gradient not added", "kernels/conv/im2col.py",
     "db[f] += gradient[p * filters + f]", "db[f] = gradient[p * filters + f]", CONV),
    ("convolution: swapped axes of w", "kernels/conv/im2col.py",
     "pack(pointer(w, 0), 1, filters, filters, depth,", "pack(pointer(w, 0), depth, 1, filters, "
     "depth,", CONV),
    ("convolution: filter turned in one direction", "kernels/conv/conv.py",
     "w[::-1, ::-1]", "w[::-1]", FAST),
    ("convolution: padding of the way forward", "kernels/conv/conv.py",
     "top=window.kernel_h - 1 - window.top", "top=window.top", FAST),
    ("convolution: outputs of zero live", "kernels/conv/conv.py",
     "code[y <= 0]", "code[y < 0]", FAST),
    ("convolution: dead gradients live", "kernels/conv/conv.py",
     "np.where(code == ZEROED, x.dtype.type(0), dy)", "dy", FAST),
    ("direct: missing bias", "kernels/conv/direct.py",
     "load_some(pointer(b, first + lane), 0, some)",
     "load_some(pointer(b, first + lane), 0, 0)", FAST),
    ("direct: wrong pixel", "kernels/simd.py",
     "builder.add(down_, right_)]", "down_]", FAST),
    ("direct: strides swapped", "kernels/conv/direct.py",
     "(2 * by * sh * wide + 2 * bx * sw)", "(2 * by * sw * wide + 2 * bx * sh)", FAST),
    ("fused convolution: missing bias", "kernels/conv/padded.py",
     "add(load(block, q // 2 * step + q % 2 * LANES), load(bias, 0))",
     "load(block, q // 2 * step + q % 2 * LANES)", FAST),
    ("Winograd 5x5: wrong number", "kernels/conv/winograd.py",
     "fma(splat(np.float32(-4.25)), d4,", "fma(splat(np.float32(-4.24)), d4,", FAST),
    ("Winograd 3x3: wrong number", "kernels/conv/winograd.py",
     "fma(splat(np.float32(-5)), d3, d5)", "fma(splat(np.float32(-4)), d3, d5)", FAST),
    ("Winograd: wrong power", "kernels/conv/winograd.py",
     "fma(splat(np.float32(8)), difference2,", "fma(splat(np.float32(4)), difference2,", FAST),
    ("Winograd: residue in blank patches", "kernels/conv/winograd.py",
     "if blanks[i + r]:", "if False:", FAST),
    ("Winograd: blank patches too narrow", "kernels/conv/winograd.py",
     "for j in range(1, size):", "for j in range(1, size - 1):", FAST),
    ("Winograd: the first image for all", "kernels/conv/winograd.py",
     "if n != present:", "if present < 0:", FAST),
    ("lists: swapped axes of the winner", "kernels/conv/pooled.py",
     "(tap >> 1 & 1) * wide + (tap & 1)", "(tap & 1) * wide + (tap >> 1 & 1)", FAST),
    ("lists: dead gradients live", "kernels/conv/pooled.py",
     "np.int32(tap != ZEROED) & np.int32(gradient[f] != 0)", "np.int32(gradient[f] != 0)", FAST),
    ("lists: bias gradient of the last", "kernels/conv/pooled.py",
     "biases[n, e // BLOCK, f] += f_values", "biases[n, e // BLOCK, f] = f_values", FAST),
    ("lists: neighbour at the same place", "kernels/conv/pooled.py",
     "offsets2, values2, length2, pointer(target, depth))",
     "offsets2, values2, length2, target)", FAST),
    ("lists: two vectors of five left out", "kernels/gather.py",
     "simd.gather(5, source,", "simd.gather(3, source,", FAST),
    ("dense lists: wrong row", "kernels/dense/lists.py",
     "end] = i * _SIDE", "end] = 0", DENSE_LISTS),
    ("dense lists: wrong length", "kernels/dense/lists.py",
     "length[_SIDE + i] = count", "length[_SIDE + i] = count - 1", DENSE_LISTS),
]


def mutated(file, old, new):
    """Return the text of a file of the package with the change."""
    text = (ROOT / "minicnn" / file).read_text("utf-8")
    if text.count(old) != 1:
        raise SystemExit(f"{file}: this must be there once, not {text.count(old)} times: {old!r}")
    return text.replace(old, new)


def run(tests, copy, cache, threads):
    """Run tests in the copy; return whether one failed, and the end of what pytest says."""
    environment = {**harness.environment(threads), "HYPOTHESIS_PROFILE": "ci",
                   "NUMBA_CACHE_DIR": str(cache), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    try:
        done = subprocess.run(
            [*command, *shlex.split(tests)], cwd=copy, env=environment, timeout=DEADLINE,
            capture_output=True, text=True,
        )
    except subprocess.TimeoutExpired:
        return True, "hung"
    if done.returncode not in (0, 1) and done.returncode > 0:  # below zero: a signal ended it
        raise SystemExit(f"{tests} did not run:\n{done.stdout}{done.stderr}")
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    return done.returncode != 0, failed[-1] if failed else done.stdout[-2000:]


def measure(mutations, threads):
    """Return for each change the test that noticed it and the seconds it took."""
    changes = [mutated(*mutation[1:4]) for mutation in mutations]  # is the table up to date?
    results = []
    with tempfile.TemporaryDirectory() as root:
        copy, cache = Path(root) / "copy", Path(root) / "compiled"
        for part in ("minicnn", "tests", "examples", "pyproject.toml"):
            place = ROOT / part
            (shutil.copytree if place.is_dir() else shutil.copy)(
                place, copy / part if place.is_dir() else copy)
        for tests in dict.fromkeys(mutation[4] for mutation in mutations):
            failed, end = run(tests, copy, cache, threads)
            if failed:
                raise SystemExit(f"{tests} fails where nothing is changed:\n{end}")
        for (what, file, _, _, tests), text in zip(mutations, changes, strict=True):
            path, start = copy / "minicnn" / file, time.perf_counter()
            before = path.read_text("utf-8")
            path.write_text(text, "utf-8")
            # Kernels of another folder: those that are compiled stay good for the next change.
            own = Path(root) / "changed" if file.startswith("kernels/") else cache
            noticed, by = run(tests, copy, own, threads)
            path.write_text(before, "utf-8")
            shutil.rmtree(Path(root) / "changed", ignore_errors=True)
            results.append({"change": f"{file}: {what}", "noticed": noticed, "by": by,
                            "seconds": time.perf_counter() - start})
            by = by.removeprefix("FAILED ").partition(" - ")[0] if noticed else "SURVIVED"
            print(f"{results[-1]['seconds']:4.0f} s  {results[-1]['change']:<70} {by}", flush=True)
    return results


def main():
    arguments = harness.parser(__doc__)
    arguments.add_argument("--only", default="", metavar="TEXT",
                           help="only changes whose file or description holds TEXT")
    args = harness.parse(arguments)
    chosen = [row for row in MUTATIONS if args.only in f"{row[1]}: {row[0]}"]
    if args.smoke:
        for mutation in MUTATIONS:
            mutated(*mutation[1:4])
        chosen = [row for row in MUTATIONS if row[1] in ("ops.py", "losses.py")][:2]
    results = measure(chosen, args.threads)
    survivors = [result["change"] for result in results if not result["noticed"]]
    print(f"\n{len(results)} changes, {len(results) - len(survivors)} noticed")
    harness.report(args, results)
    if survivors:
        raise SystemExit("\n".join(["No test noticed:", *survivors]))


if __name__ == "__main__":
    main()
